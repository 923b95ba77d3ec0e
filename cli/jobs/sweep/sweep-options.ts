import type { Progress } from '../../../compiler/progress.ts';
import type { SweepTarget } from '../../../evaluation/sweep/sweep-report.ts';
import type { Soc } from '../../../targets/socs.ts';
import type { CompileConfig } from '../../config.ts';

/** Where points are compiled: in processes of this machine, or by workers behind a queue. */
export type Executor =
  | { readonly kind: 'local' }
  | { readonly kind: 'bullmq'; readonly redis: string; readonly queue: string };

/** What a sweep was asked for. */
export interface SweepOptions {
  /** One for every scheme, alike in all else. */
  readonly configs: readonly CompileConfig[];
  readonly socs: readonly Soc[];
  readonly targets: readonly SweepTarget[];
  /** The folder of the sweep; a plan needs none. */
  readonly out: string | undefined;
  readonly budget: string | undefined;
  /** Points at a time; by default half of the cores. */
  readonly jobs: number | undefined;
  readonly simulate: 'auto' | 'all' | 'none';
  /** First tokens that a sliding cache keeps. */
  readonly sinks: number;
  readonly positions: 'cache' | 'global';
  readonly executor: Executor;
  /** Artifacts by digest; by default in the folder. */
  readonly store: string | undefined;
  readonly force: boolean;
  /** The command line, for the report. */
  readonly command: string;
  readonly progress: Progress;
}
