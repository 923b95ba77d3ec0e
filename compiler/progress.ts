import { writeSync } from 'node:fs';

/** What long work reports to: one line on a terminal that is rewritten, plain lines elsewhere, nothing when quiet. */
export interface Progress {
  /** Starts a stage; the one before it is finished. */
  stage(name: string): void;
  /** How far the stage is, in any unit. */
  update(done: number, total: number, note?: string): void;
  /** Peak memory of a child process that the stage ran, bytes. */
  notePeak(bytes: number): void;
  /** A line of talk. */
  note(text: string): void;
  /** Ends the last stage. */
  finish(): void;
  /** Seconds and peak memory of every stage so far, in order. */
  readonly stages: readonly StageTiming[];
}

export interface StageTiming {
  readonly name: string;
  seconds: number;
  /** Peak resident set of this process by the end of the stage, bytes. */
  peakRssBytes: number;
  /** Peak resident set of the largest child process of the stage, where it ran one. */
  childPeakRssBytes?: number;
}

export type ProgressMode = 'terminal' | 'lines' | 'quiet';

/** stderr is talk: a terminal gets a bar, anything else lines. */
export function progressMode(quiet: boolean): ProgressMode {
  if (quiet) return 'quiet';
  return process.stderr.isTTY && !process.env.CI ? 'terminal' : 'lines';
}

const BAR = 24;

export function createProgress(mode: ProgressMode): Progress {
  const stages: StageTiming[] = [];
  let started = 0;
  let lastDraw = 0;
  let open = false;
  const write = (text: string): void => {
    try {
      writeSync(2, text);
    } catch {
      // A closed or full stderr must not stop a compile.
    }
  };
  const end = (): void => {
    if (!open) return;
    const stage = stages.at(-1)!;
    stage.seconds = (performance.now() - started) / 1000;
    stage.peakRssBytes = process.resourceUsage().maxRSS * 1024;
    if (mode === 'terminal') write(`\r\x1b[K  ${stage.name} ${stage.seconds.toFixed(1)} s\n`);
    if (mode === 'lines') write(`  ${stage.name} ${stage.seconds.toFixed(1)} s\n`);
    open = false;
  };
  // Whatever ends the process, the shell's prompt begins on a line of its own.
  if (mode === 'terminal') process.once('exit', () => open && write('\n'));
  return {
    stages,
    stage(name) {
      end();
      stages.push({ name, seconds: 0, peakRssBytes: 0 });
      started = performance.now();
      lastDraw = 0;
      open = true;
      if (mode === 'terminal') write(`\r\x1b[K  ${name}`);
    },
    update(done, total, note) {
      if (mode !== 'terminal' || !open) return;
      const now = performance.now();
      if (now - lastDraw < 100 && done < total) return;
      lastDraw = now;
      const share = total > 0 ? Math.min(1, done / total) : 0;
      const seconds = (now - started) / 1000;
      const left = share > 0 && share < 1 ? `, ${((seconds / share) * (1 - share)).toFixed(0)} s left` : '';
      const filled = Math.round(share * BAR);
      write(
        `\r\x1b[K  ${stages.at(-1)!.name} [${'='.repeat(filled)}${' '.repeat(BAR - filled)}] ${done}/${total}${left}${note ? ` ${note}` : ''}`,
      );
    },
    notePeak(bytes) {
      const stage = stages.at(-1);
      if (stage && open) stage.childPeakRssBytes = Math.max(stage.childPeakRssBytes ?? 0, bytes);
    },
    note(text) {
      if (mode === 'quiet') return;
      write(mode === 'terminal' ? `\r\x1b[K${text}\n` : `${text}\n`);
    },
    finish: end,
  };
}
