import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Decision } from '../../calibration/describe-decisions.ts';
import { NpucError } from '../../compiler/errors.ts';
import { nearestWord } from '../../compiler/nearest.ts';
import { readAnyManifest } from '../../targets/manifest.ts';
import type { TargetName } from '../../targets/target.ts';

/** The file beside a manifest that says how every encoding came about. */
export const PLAN_FILE = 'plan.json';

type Decisions = Partial<Record<TargetName, readonly Decision[]>>;

/** Writes the decisions of every target, one a line. The same input gives the same bytes. */
export function writeDecisions(
  folder: string,
  decoders: ReadonlyMap<TargetName, { readonly explain: () => readonly Decision[] }>,
): string {
  const targets = [...decoders].map(([name, { explain }]) => {
    const decisions = explain().filter(({ kind }) => name !== 'hf' || (kind !== 'activation' && kind !== 'cache'));
    const lines = decisions.map((decision) => JSON.stringify(decision));
    return `${JSON.stringify(name)}: [\n${lines.join(',\n')}\n]`;
  });
  writeFileSync(join(folder, PLAN_FILE), `{\n"format": 1,\n"targets": {\n${targets.join(',\n')}\n}\n}\n`);
  return PLAN_FILE;
}

/** One decision as a target made it. */
export interface ExplainedDecision extends Decision {
  readonly target: TargetName;
}

/**
 * The decisions about a value, a weight, or whatever a node of the user's own model computes or reads.
 * @param wanted its name; without one every decision
 * @throws TG110 where the folder holds no compiled model or one without decisions, CL001 for a target or a name that it lacks
 */
export function explainValue(
  folder: string,
  wanted: string | undefined,
  target: string | undefined,
): ExplainedDecision[] {
  const manifest = readAnyManifest(folder);
  if (target !== undefined && !Object.hasOwn(manifest.targets, target)) {
    throw new NpucError('CL001', {
      message: `${folder} has no target ${target}`,
      where: folder,
      hint: `it has ${Object.keys(manifest.targets).join(', ')}`,
    });
  }
  const all = (Object.entries(readDecisions(folder)) as [TargetName, readonly Decision[]][])
    .filter(([name]) => target === undefined || name === target)
    .flatMap(([name, decisions]) => decisions.map((decision) => ({ target: name, ...decision })));
  if (wanted === undefined) return all;
  const byName = all.filter(({ values }) => values.includes(wanted));
  const found = byName.length > 0 ? byName : all.filter(({ nodes }) => nodes.includes(wanted));
  if (found.length > 0) return found;
  const names = [...new Set(all.flatMap(({ values, nodes }) => [...values, ...nodes]))];
  const near = nearestWord(wanted, names) ?? names.find((name) => name.includes(wanted));
  throw new NpucError('CL001', {
    message: `no encoding is of ${wanted}`,
    where: folder,
    hint: near ? `did you mean ${near}?` : 'npuc explain <folder> lists what has an encoding',
  });
}

function readDecisions(folder: string): Decisions {
  const path = join(folder, PLAN_FILE);
  if (!existsSync(path)) {
    throw new NpucError('TG110', {
      message: `${folder} does not say how its encodings came about: there is no ${PLAN_FILE}`,
      where: folder,
      hint: 'compile again with this version',
    });
  }
  try {
    return (JSON.parse(readFileSync(path, 'utf8')) as { targets: Decisions }).targets;
  } catch (cause) {
    throw new NpucError('TG110', {
      message: `${PLAN_FILE} cannot be read: ${(cause as Error).message}`,
      where: path,
      cause,
    });
  }
}
