import type { TargetReport } from './report.ts';

/** How near a target is to the float model, in one word. */
export type Grade = 'close' | 'loss' | 'degraded' | 'broken' | 'unproven';

/**
 * Largest perplexity ratio and largest mean KL (nats per token) of each grade; both must hold. The bounds are set where
 * measured models change in character: 8-bit weights stay under the first, good 4-bit weights under the second, plain
 * rounding to 4 bits under the third, and models that 8-bit activations destroyed lie orders above (docs/report.md).
 */
export const GRADE_BOUNDS = [
  { grade: 'close', ratio: 1.02, divergence: 0.03 },
  { grade: 'loss', ratio: 1.1, divergence: 0.15 },
  { grade: 'degraded', ratio: 1.5, divergence: 0.6 },
] as const;

export const GRADES: Readonly<Record<Grade, { readonly word: string; readonly sentence: string }>> = {
  close: { word: 'Good', sentence: 'close to the float model' },
  loss: { word: 'Some loss', sentence: 'usable, with a loss that shows' },
  degraded: { word: 'Degraded', sentence: 'clearly worse than the float model' },
  broken: { word: 'Broken', sentence: 'no longer the same model' },
  unproven: { word: 'Not run', sentence: 'not executed, so nothing is known' },
};

/** The worst first: what decides the verdict over all targets. */
export const WORST_FIRST: readonly Grade[] = ['broken', 'unproven', 'degraded', 'loss', 'close'];

/** Grades a target by its perplexity ratio and KL; by KL alone where only a chunk was run. */
export function gradeTarget(target: TargetReport): Grade {
  if (target.execution === 'read-back-only') return 'unproven';
  const ratio = target.logits ? target.logits.ratio : 1;
  const divergence = (target.logits ?? target.chunk)?.divergence;
  if (divergence === undefined) return 'unproven';
  return GRADE_BOUNDS.find((bound) => ratio <= bound.ratio && divergence <= bound.divergence)?.grade ?? 'broken';
}
