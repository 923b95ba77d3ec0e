import type { Progress } from '../../../compiler/progress.ts';
import type { ArtifactStore } from './artifact-store.ts';

/** Where a job works. */
export interface JobContext {
  readonly store: ArtifactStore;
  /** Where a point is compiled before its files go into the store. */
  readonly work: string;
  readonly progress: Progress;
}
