import type { Queue, Worker } from 'bullmq';
import { NpucError } from '../../../compiler/errors.ts';
import type { JobInputs, SweepJob } from './sweep-job.ts';

/** What a job of the queue holds: data only, the artifacts go through the store. */
export interface QueuedJob {
  readonly key: string;
  readonly job: SweepJob;
  readonly inputs: JobInputs;
  /** Version of npuc that planned it. */
  readonly npuc: string;
}

/** Milliseconds without an answer after which a queue counts as lost. */
export const LOST_MS = 15_000;

/** Milliseconds that a worker may be silent, and how often its silence is looked for. */
export const LOCK_MS = 12_000;
export const STALLED_MS = 4_000;

/** The optional packages, at the versions that the tests run with. */
const PACKAGES = 'npm install bullmq@6.7.0 ioredis@5.11.1';

/** @throws SW007 where the optional packages are not installed */
export async function loadBullmq(): Promise<{ readonly Queue: typeof Queue; readonly Worker: typeof Worker }> {
  try {
    // The driver is loaded by name, so its absence would show late.
    await import('ioredis');
    return await import('bullmq');
  } catch (cause) {
    throw new NpucError('SW007', {
      message: `the bullmq executor needs optional packages: ${(cause as Error).message.split('\n')[0]}`,
      hint: PACKAGES,
      cause,
    });
  }
}

/** Checks the address of a Redis or Valkey. @throws CL001 */
export function checkAddress(redis: string): string {
  let protocol: string;
  try {
    ({ protocol } = new URL(redis));
  } catch {
    protocol = '';
  }
  if (protocol === 'redis:' || protocol === 'rediss:') return redis;
  throw new NpucError('CL001', {
    message: `${redis} is no address of a Redis`,
    hint: 'redis://host:6379, or rediss://',
  });
}

/** The address without what is secret in it. */
export function describeAddress(redis: string): string {
  const url = new URL(redis);
  return `${url.protocol}//${url.host}`;
}

export function queueLost(redis: string, cause: unknown): NpucError {
  return new NpucError('SW005', {
    message: `the queue at ${describeAddress(redis)} does not answer: ${(cause as Error)?.message || String(cause)}`,
    hint: 'what is done is in the store: run the sweep again when the queue is back, and it goes on',
    cause,
  });
}

/** The id of a job in the queue: an id of digits only would be taken for one of the queue's own. */
export function idOf(key: string): string {
  return `job-${key}`;
}
