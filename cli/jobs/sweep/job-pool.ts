import { type ChildProcess, fork } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type ErrorCode, NpucError } from '../../../compiler/errors.ts';
import { describeJob, type JobResult, type SweepJob } from './sweep-job.ts';

/** Where jobs are done: processes of this machine, or workers behind a queue. */
export interface JobRunner {
  /**
   * Does a job; the same key gives the same result. `onStage` hears what it is at.
   * @throws what the job throws; SW006 when its process dies twice
   */
  run(key: string, job: SweepJob, onStage?: (name: string) => void): Promise<JobResult>;
  close(): Promise<void>;
}

export interface JobRequest {
  readonly key: string;
  readonly job: SweepJob;
  /** Folder of the store. */
  readonly store: string;
  readonly work: string;
}

export type JobAnswer =
  | { readonly kind: 'stage'; readonly name: string }
  | { readonly kind: 'done'; readonly result: JobResult }
  | {
      readonly kind: 'failed';
      readonly code: ErrorCode;
      readonly message: string;
      readonly where: string | undefined;
      readonly hint: string | undefined;
      readonly exitCode: number;
    };

interface Task {
  readonly request: JobRequest;
  readonly onStage: ((name: string) => void) | undefined;
  readonly resolve: (result: JobResult) => void;
  readonly reject: (error: unknown) => void;
  /** Processes that died over it. */
  deaths: number;
}

export interface PoolOptions {
  readonly size: number;
  readonly store: string;
  readonly work: string;
  /** Hears that a process died and its job is taken over. */
  readonly note?: (line: string) => void;
}

/**
 * Does jobs in so many processes, each job in one. A process that dies (killed, out of memory) is replaced, and its job is taken
 * over once. The processes end with this one.
 */
export function createJobPool({ size, store, work, note }: PoolOptions): JobRunner {
  const idle: ChildProcess[] = [];
  const children = new Set<ChildProcess>();
  const waiting: Task[] = [];
  let closed = false;
  const endAll = (): void => {
    for (const child of children) child.kill('SIGTERM');
  };
  process.once('exit', endAll);

  const next = (): void => {
    while (waiting.length > 0 && (idle.length > 0 || children.size < size)) {
      start(waiting.shift()!, idle.pop() ?? startProcess(children));
    }
  };

  const start = (task: Task, child: ChildProcess): void => {
    const settle = (finish: () => void): void => {
      child.removeListener('message', onMessage);
      child.removeListener('exit', onExit);
      finish();
      next();
    };
    const onMessage = (answer: JobAnswer): void => {
      if (answer.kind === 'stage') {
        task.onStage?.(answer.name);
        return;
      }
      settle(() => {
        if (closed) child.disconnect();
        else idle.push(child);
        if (answer.kind === 'done') task.resolve(answer.result);
        else task.reject(toError(answer));
      });
    };
    const onExit = (code: number | null, signal: NodeJS.Signals | null): void => {
      settle(() => {
        const how = signal ?? `exit code ${code}`;
        if (closed || ++task.deaths > 1) task.reject(workerDied(task.request.job, how));
        else {
          note?.(`  a worker died (${how}): ${describeJob(task.request.job)} is taken over`);
          waiting.unshift(task);
        }
      });
    };
    child.on('message', onMessage);
    child.once('exit', onExit);
    child.send(task.request, (error) => {
      // A process that died before it could hear: its exit is handled above.
      if (error && child.exitCode === null && child.signalCode === null) child.kill('SIGKILL');
    });
  };

  return {
    run: (key, job, onStage) =>
      new Promise((resolve, reject) => {
        waiting.push({ request: { key, job, store, work }, onStage, resolve, reject, deaths: 0 });
        next();
      }),
    close: async () => {
      closed = true;
      process.removeListener('exit', endAll);
      await Promise.all(
        [...children].map(
          (child) =>
            new Promise<void>((done) => {
              child.once('exit', () => done());
              child.kill('SIGTERM');
            }),
        ),
      );
    },
  };
}

function startProcess(children: Set<ChildProcess>): ChildProcess {
  // Large numbers pass as they are, infinite ones too.
  const child = fork(entryFile(), {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    serialization: 'advanced',
    execArgv: [],
  });
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child;
}

/** The process's entry, always the built one: Node does not run TypeScript. */
function entryFile(): string {
  const here = dirname(fileURLToPath(import.meta.url));
  const beside = join(here, 'job-process.js');
  if (existsSync(beside)) return beside;
  let root = here;
  while (!existsSync(join(root, 'package.json')) && dirname(root) !== root) root = dirname(root);
  const built = join(root, 'dist', 'cli', 'jobs', 'sweep', 'job-process.js');
  if (existsSync(built)) return built;
  throw new NpucError('XX001', { message: `${built} is missing`, hint: 'npm run build' });
}

/** A failure that came over the wire, as an error again. */
export function toError({ code, message, where, hint, exitCode }: Extract<JobAnswer, { kind: 'failed' }>): NpucError {
  return new NpucError(code, {
    message,
    ...(where === undefined ? {} : { where }),
    ...(hint === undefined ? {} : { hint }),
    exitCode: exitCode as 1 | 2 | 70,
  });
}

function workerDied(job: SweepJob, how: string): NpucError {
  return new NpucError('SW006', {
    message: `${describeJob(job)}: its process died twice (${how})`,
    hint: 'was there enough memory? fewer --jobs or --max-memory need less; the rest of the sweep is kept',
  });
}
