import { hostname } from 'node:os';
import { join } from 'node:path';
import { NpucError } from '../../../compiler/errors.ts';
import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import { makeTemporaryFolder } from '../../../compiler/runtime/engine.ts';
import { findToolchain } from '../../../targets/qnn/toolchain.ts';
import { version } from '../version.ts';
import { openStore } from './artifact-store.ts';
import { createJobPool } from './job-pool.ts';
import {
  checkAddress,
  describeAddress,
  LOCK_MS,
  LOST_MS,
  loadBullmq,
  type QueuedJob,
  queueLost,
  STALLED_MS,
} from './queue.ts';
import { describeJob } from './sweep-job.ts';

export interface WorkerOptions {
  readonly redis: string;
  readonly queue: string;
  readonly store: string;
  /** Jobs at a time. */
  readonly jobs: number;
  /** Seconds without a job after which the worker ends; never where absent. */
  readonly idle: number | undefined;
  readonly note: (line: string) => void;
}

/**
 * Takes jobs from a queue until it is told to end, and puts their results into the store. The jobs run in processes of their own,
 * so this one is never too busy to tell the queue that it lives: when it dies, its job goes to another worker, once.
 * @throws SW007 without the packages, SW005 when the queue cannot be reached at the start
 */
export async function runWorker(options: WorkerOptions): Promise<void> {
  const { redis, queue, jobs, idle, note } = options;
  const url = checkAddress(redis);
  const { Worker } = await loadBullmq();
  const store = openStore(options.store);
  const folder = makeTemporaryFolder();
  const pool = createJobPool({ size: jobs, store: options.store, work: join(folder.path, 'work'), note });
  let busy = 0;
  let quietSince = Date.now();
  const worker = new Worker<QueuedJob, string>(
    queue,
    async (queued) => {
      const { key, job, inputs, npuc } = queued.data;
      busy++;
      try {
        await checkInputs(queued.data);
        if (!store.findResult(key)) {
          note(`  ${describeJob(job)}`);
          const result = await pool.run(key, job, (stage) => void queued.updateProgress(stage).catch(() => undefined));
          store.saveResult(key, result);
          note(`  ${describeJob(job)}: done in ${result.seconds.toFixed(1)} s`);
        }
        return `${npuc} ${inputs.checkpoint}`;
      } catch (error) {
        if (!(error instanceof NpucError)) throw error;
        const { code, message, where, hint, exitCode } = error;
        note(`  ${describeJob(job)}: ${code} ${message}`);
        // The sweep makes an error of it again.
        throw new Error(JSON.stringify({ code, message, where, hint, exitCode }), { cause: error });
      } finally {
        busy--;
        quietSince = Date.now();
      }
    },
    {
      connection: { url, maxRetriesPerRequest: null, connectTimeout: LOST_MS },
      concurrency: jobs,
      lockDuration: LOCK_MS,
      stalledInterval: STALLED_MS,
      // Taken over once.
      maxStalledCount: 1,
      name: `${hostname()} ${process.pid}`,
      autorun: false,
    },
  );
  let reachable: boolean | undefined;
  let ended = (): void => undefined;
  const end = new Promise<void>((done) => {
    ended = done;
  });
  worker.on('error', (error) => {
    // Of a connection that is lost there is one for every attempt to make it again.
    if (reachable) note(`  the queue does not answer: ${error.message}; waiting for it`);
    reachable = false;
  });
  worker.on('ready', () => {
    reachable = true;
  });
  const watch = setInterval(() => {
    if (idle !== undefined && busy === 0 && Date.now() - quietSince > idle * 1000) ended();
  }, 200);
  try {
    await Promise.race([
      worker.waitUntilReady(),
      new Promise<never>((_, reject) =>
        setTimeout(() => reject(queueLost(redis, new Error('no answer'))), LOST_MS).unref(),
      ),
    ]);
    reachable = true;
    note(`waiting for jobs of ${queue} at ${describeAddress(redis)}`);
    void worker.run().catch(() => ended());
    await end;
  } finally {
    clearInterval(watch);
    await Promise.race([worker.close(), new Promise((done) => setTimeout(done, 2000).unref())]);
    await pool.close();
    folder.release();
  }
}

/**
 * What the job's key promises must be true here: the same npuc, toolchain and checkpoint.
 * @throws SW009
 */
async function checkInputs({ job, inputs, npuc }: QueuedJob): Promise<void> {
  const refuse = (message: string, hint: string): never => {
    throw new NpucError('SW009', { message: `worker ${hostname()}: ${message}`, hint });
  };
  if (npuc !== version()) refuse(`npuc ${version()} is not the ${npuc} of the sweep`, 'install the same version');
  const toolchain = findToolchain('qnn')?.versions ?? {};
  const isSame = Object.entries(inputs.toolchain).every(([name, wanted]) => toolchain[name] === wanted);
  if (!isSame) refuse('its HTP toolchain is not that of the sweep', 'npuc toolchain install qnn');
  const source = job.config.source!;
  const checkpoint = await openCheckpoint(source);
  const digest = await checkpoint.digest().finally(() => checkpoint.close());
  if (digest !== inputs.checkpoint)
    refuse(`${source} is another checkpoint here`, 'give the sweep a path that all machines share');
}
