import { writeSync } from 'node:fs';

/** What long work reports to: one line on a terminal that is rewritten, plain lines elsewhere, nothing when quiet. */
export interface Progress {
  /** Starts a stage; the one before it is finished. */
  stage(name: string): void;
  /** How far the stage is, in any unit. */
  update(done: number, total: number, note?: string): void;
  /** Peak memory of a child process that the stage ran, bytes. */
  notePeak(bytes: number): void;
  /** What one child process made, and what it needed beside what was foretold. */
  notePart(part: PartTiming): void;
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
  /** Child processes of the stage whose cost was foretold. */
  parts?: PartTiming[];
}

/** The cost of one child process of a stage. */
export interface PartTiming {
  readonly name: string;
  readonly weights: number;
  readonly graphs: number;
  readonly seconds: number;
  readonly peakRssBytes: number;
  readonly predictedPeakRssBytes: number;
  /** Of all threads. */
  readonly cpuSeconds: number;
  readonly predictedCpuSeconds: number;
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
  const note = (text: string): void => {
    if (mode === 'quiet') return;
    write(mode === 'terminal' ? `\r\x1b[K${text}\n` : `${text}\n`);
  };
  const notePeak = (bytes: number): void => {
    const stage = stages.at(-1);
    if (stage && open) stage.childPeakRssBytes = Math.max(stage.childPeakRssBytes ?? 0, bytes);
  };
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
    notePeak,
    notePart(part) {
      notePeak(part.peakRssBytes);
      const stage = stages.at(-1);
      if (stage && open) stage.parts = [...(stage.parts ?? []), part];
      note(`  ${describePart(part)}`);
    },
    note,
    finish: end,
  };
}

/** `layers.0 to layers.7, 2 graphs: 61.2 s, peak 1.21 GB (predicted 1.30), CPU 58 s (predicted 62)`. */
function describePart(part: PartTiming): string {
  const gigabytes = (bytes: number): string => (bytes / 1e9).toFixed(2);
  const graphs = part.graphs === 1 ? '1 graph' : `${part.graphs} graphs`;
  return (
    `${part.name}, ${graphs}: ${part.seconds.toFixed(1)} s, ` +
    `peak ${gigabytes(part.peakRssBytes)} GB (predicted ${gigabytes(part.predictedPeakRssBytes)}), ` +
    `CPU ${part.cpuSeconds.toFixed(1)} s (predicted ${part.predictedCpuSeconds.toFixed(1)})`
  );
}
