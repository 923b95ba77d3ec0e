import { NpucError } from '../../../compiler/errors.ts';
import { createProgress, type Progress } from '../../../compiler/progress.ts';
import { openStore } from './artifact-store.ts';
import type { JobAnswer, JobRequest } from './job-pool.ts';
import { runJob } from './run-job.ts';

/**
 * A process that does jobs, one after the other, for the process that forked it. It ends with that process, and leaves nothing
 * half-written: exit handlers remove what was being made.
 */

const send = (answer: JobAnswer): void => {
  process.send?.(answer);
};

/** Names of stages go to the parent; the process itself says nothing. */
function tellStages(): Progress {
  const quiet = createProgress('quiet');
  return {
    ...quiet,
    stage: (name) => {
      send({ kind: 'stage', name });
      quiet.stage(name);
    },
  };
}

process.on('message', async ({ key, job, store, work }: JobRequest) => {
  const progress = tellStages();
  try {
    const result = await runJob(key, job, { store: openStore(store), work, progress });
    send({ kind: 'done', result });
  } catch (error) {
    const { code, message, where, hint, exitCode } =
      error instanceof NpucError
        ? error
        : new NpucError('XX001', { message: `internal error: ${(error as Error)?.stack ?? String(error)}` });
    send({ kind: 'failed', code, message, where, hint, exitCode });
  } finally {
    progress.finish();
  }
});

process.once('disconnect', () => process.exit(1));
for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
