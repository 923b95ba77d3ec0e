import type { Plan } from '../calibration/plan.ts';
import type { ManifestFile } from '../targets/manifest.ts';
import type { ManifestTarget, TargetName } from '../targets/target.ts';
import type { FileRole, PlanLine, ReportFile } from './report.ts';

/**
 * The decisions of all targets as one list, weights first, each in the order of its plan. Targets that decided alike share
 * a line; a value that they write differently has a line for each form.
 */
export function mergePlans(decoders: ReadonlyMap<TargetName, { readonly plan: Plan }>): PlanLine[] {
  const lines = new Map<string, { value: string; dtype: string; why: string; targets: TargetName[] }>();
  const add = (target: TargetName, value: string, dtype: string, why: string): void => {
    const key = JSON.stringify([value, dtype, why]);
    const line = lines.get(key) ?? { value, dtype, why, targets: [] };
    line.targets.push(target);
    lines.set(key, line);
  };
  for (const [target, { plan }] of decoders) {
    for (const { name, form, why } of plan.weights.values()) {
      add(target, name, `i${form.bits} ${form.block > 0 ? `block ${form.block}` : 'per channel'}`, why);
    }
    for (const table of plan.tables) add(target, table, 'i8 per row', 'embedding table');
  }
  for (const [target, { plan }] of decoders) {
    for (const [value, { encoding, why }] of plan.activations) add(target, value, encoding.dtype, why);
  }
  return [...lines.values()];
}

/** A target's files with what each is for. */
export function listFiles(
  target: Pick<ManifestTarget, 'files' | 'embedding'>,
  files: readonly ManifestFile[],
): ReportFile[] {
  const wanted = new Set(target.files);
  return files
    .filter(({ path }) => wanted.has(path))
    .map(({ path, bytes }) => ({ path, role: path === target.embedding?.file ? 'embedding' : fileRole(path), bytes }));
}

function fileRole(path: string): FileRole {
  if (path.includes('/qdq/')) return 'source';
  if (path.endsWith('.tflite')) return 'model';
  if (path.endsWith('.bin')) return 'binary';
  if (path.endsWith('.data')) return 'weights';
  if (path.endsWith('.json')) return 'encodings';
  return 'graph';
}
