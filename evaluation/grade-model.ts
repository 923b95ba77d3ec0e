import { worstSqnr } from './compare-runs.ts';
import type { Grade } from './grade-target.ts';
import type { ModelTargetReport } from './model-report.ts';

/**
 * Smallest SQNR of the worst output for each grade: a hundredth, a thirtieth and a tenth of an output's size in error. What a
 * model's task makes of that only its own metric can say.
 */
export const MODEL_GRADE_BOUNDS = [
  { grade: 'close', sqnr: 40 },
  { grade: 'loss', sqnr: 30 },
  { grade: 'degraded', sqnr: 20 },
] as const;

/** Grades a target by its worst output against the float model. */
export function gradeModel(target: ModelTargetReport): Grade {
  if (target.execution === 'read-back-only' || target.outputs.length === 0) return 'unproven';
  const worst = worstSqnr(target.outputs);
  return MODEL_GRADE_BOUNDS.find(({ sqnr }) => worst >= sqnr)?.grade ?? 'broken';
}
