import type { Argv } from 'yargs';
import { createProgress, progressMode } from '../compiler/progress.ts';
import type { Command } from './commands.ts';
import { countFlag, numberFlag, textFlag } from './flags.ts';

interface WorkerArguments {
  readonly redis: string;
  readonly store: string;
  readonly queue: string;
  readonly jobs: number;
  readonly idle?: number;
  readonly quiet: boolean;
}

/** `npuc worker`: does the jobs of sweeps that other machines send. */
export const workerCommand: Command = {
  command: 'worker',
  describe: 'take points of sweeps from a queue, compile them, and put them into a shared store',
  builder: (args: Argv) =>
    args
      .option('redis', { ...textFlag('Redis or Valkey, such as redis://host:6379'), demandOption: true })
      .option('store', { ...textFlag('shared folder for artifacts by digest'), demandOption: true })
      .option('queue', { ...textFlag('name of the queue'), default: 'npuc-sweep' })
      .option('jobs', { ...countFlag('jobs', 'jobs at a time'), default: 1 })
      .option('idle', numberFlag('idle', 'end after so many seconds without a job', { above: 0 }))
      .example('$0 worker --redis redis://host:6379 --store /mnt/store', '')
      .example('$0 worker --redis redis://host:6379 --store /mnt/store --jobs 4 --idle 600', ''),
  run: async (args: WorkerArguments) => {
    const { runWorker } = await import('./jobs/sweep/queue-worker.ts');
    const { note } = createProgress(progressMode(args.quiet));
    await runWorker({ ...args, idle: args.idle, note });
    return 0;
  },
};
