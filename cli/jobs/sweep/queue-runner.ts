import { setTimeout as sleep } from 'node:timers/promises';
import type { Job, Queue } from 'bullmq';
import { ERROR_TITLES, type ErrorCode, NpucError } from '../../../compiler/errors.ts';
import { version } from '../version.ts';
import { openStore } from './artifact-store.ts';
import { type JobAnswer, type JobRunner, toError } from './job-pool.ts';
import { checkAddress, idOf, LOST_MS, loadBullmq, type QueuedJob, queueLost } from './queue.ts';
import { describeJob, type JobInputs, type JobResult, type SweepJob } from './sweep-job.ts';

export interface QueueRunnerOptions {
  readonly redis: string;
  readonly queue: string;
  /** Folder of the store, which workers see too. */
  readonly store: string;
  readonly inputs: (job: SweepJob) => JobInputs;
  readonly note: (line: string) => void;
}

/** How often the queue is asked what became of the jobs. */
const POLL_MS = 300;
/** How long a result may take to appear in the store, on a shared disk that lags, once the queue says that it is there. */
const LAG_MS = 10_000;
/** How long the queue may take to let go. */
const CLOSE_MS = 2000;
/** Finished jobs stay in the queue for so many seconds. */
const KEPT_SECONDS = 3600;

interface Pending {
  readonly data: QueuedJob;
  readonly onStage: ((name: string) => void) | undefined;
  readonly resolve: (result: JobResult) => void;
  readonly reject: (error: unknown) => void;
  /** When the queue first said that it is done. */
  doneAt?: number;
  stage?: string;
}

/**
 * Sends jobs to workers behind a BullMQ queue and waits for their results, which come through the store. A job that another
 * sweep has sent already is waited for, not sent again.
 * @throws SW007 without the packages, SW005 when the queue cannot be reached now, or is lost later: then every job that runs fails
 *   with it, and what is done stays in the store
 */
export async function createQueueRunner(options: QueueRunnerOptions): Promise<JobRunner> {
  const { redis, store: root, inputs, note } = options;
  const url = checkAddress(redis);
  const { Queue } = await loadBullmq();
  const queue = new Queue<QueuedJob>(options.queue, {
    connection: { url, maxRetriesPerRequest: 1, connectTimeout: LOST_MS },
  });
  // Without a listener an error of the connection would end the process.
  let last: unknown = new Error('no answer');
  queue.on('error', (error) => {
    last = error;
  });
  /** An answer of the queue, however often the connection has to be made for it. */
  const ask = async <T>(question: () => Promise<T>): Promise<T> => {
    const deadline = Date.now() + LOST_MS;
    for (;;) {
      try {
        return await within(question(), deadline - Date.now(), () => last);
      } catch (error) {
        if (Date.now() >= deadline) throw queueLost(redis, error);
        last = error;
        await sleep(POLL_MS);
      }
    }
  };
  const close = async (): Promise<void> => {
    // A connection that is lost does not end by itself either: nobody waits for that.
    await within(queue.close(), CLOSE_MS, () => last).catch(() => void queue.disconnect().catch(() => undefined));
  };
  try {
    await ask(() => queue.getJobCounts());
  } catch (error) {
    await close();
    throw error;
  }

  const store = openStore(root);
  const pending = new Map<string, Pending>();
  let polling = false;
  let lost: unknown;

  const poll = async (): Promise<void> => {
    if (polling) return;
    polling = true;
    try {
      while (pending.size > 0) {
        for (const [key, entry] of [...pending]) await look(key, entry);
        await sleep(POLL_MS);
      }
    } catch (error) {
      lost = error;
      for (const { reject } of pending.values()) reject(error);
      pending.clear();
    } finally {
      polling = false;
    }
  };

  const settle = (key: string, finish: (entry: Pending) => void): void => {
    const entry = pending.get(key)!;
    pending.delete(key);
    finish(entry);
  };

  const look = async (key: string, entry: Pending): Promise<void> => {
    const job = await ask(() => queue.getJob(idOf(key)));
    const state = job ? await ask(() => job.getState()) : 'unknown';
    if (state === 'completed') {
      const result = store.findResult(key);
      entry.doneAt ??= Date.now();
      if (result) settle(key, ({ resolve }) => resolve(result));
      else if (Date.now() - entry.doneAt > LAG_MS)
        settle(key, ({ reject }) => reject(notInStore(entry.data.job, root)));
      return;
    }
    if (state === 'failed') {
      settle(key, ({ reject }) => reject(readFailure(job!, entry.data.job)));
      return;
    }
    // A queue that was emptied or restarted does not know it any more.
    if (state === 'unknown') await send(queue, entry.data, ask);
    else if (typeof job!.progress === 'string' && job!.progress !== entry.stage) {
      entry.stage = job!.progress;
      entry.onStage?.(entry.stage);
    }
  };

  return {
    run: async (key, job, onStage) => {
      if (lost) throw lost;
      const data: QueuedJob = { key, job, inputs: inputs(job), npuc: version() };
      const before = await ask(() => queue.getJob(idOf(key)));
      // What failed or is not in the store any more is done again.
      if (before && ['completed', 'failed'].includes(await ask(() => before.getState())))
        await ask(() => before.remove());
      await send(queue, data, ask);
      return await new Promise<JobResult>((resolve, reject) => {
        pending.set(key, { data, onStage, resolve, reject });
        void poll();
      });
    },
    close: async () => {
      if (pending.size > 0) note(`  ${pending.size} jobs stay in the queue`);
      pending.clear();
      await close();
    },
  };
}

async function send(
  queue: Queue<QueuedJob>,
  data: QueuedJob,
  ask: <T>(question: () => Promise<T>) => Promise<T>,
): Promise<void> {
  const kept = { age: KEPT_SECONDS };
  await ask(() =>
    queue.add(data.job.kind, data, { jobId: idOf(data.key), attempts: 1, removeOnComplete: kept, removeOnFail: kept }),
  );
}

async function within<T>(promise: Promise<T>, ms: number, why: () => unknown): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(why()), Math.max(0, ms));
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** The worker's error, or that workers died over the job. */
function readFailure({ failedReason }: Job<QueuedJob>, job: SweepJob): NpucError {
  if (/stalled/i.test(failedReason)) {
    return new NpucError('SW006', {
      message: `${describeJob(job)}: two workers died over it`,
      hint: 'had they enough memory? fewer --jobs or --max-memory need less; the rest of the sweep is kept',
    });
  }
  try {
    const answer = JSON.parse(failedReason) as Extract<JobAnswer, { kind: 'failed' }>;
    if ((answer.code as ErrorCode) in ERROR_TITLES) return toError(answer);
  } catch {
    // Not one of ours.
  }
  return new NpucError('XX001', { message: `${describeJob(job)}: ${failedReason}` });
}

function notInStore(job: SweepJob, root: string): NpucError {
  return new NpucError('SW008', {
    message: `${describeJob(job)} is done, but its result is not in the store`,
    where: root,
    hint: 'do the workers have the same --store?',
  });
}
