import type { TargetName } from '../targets/target.ts';
import type { ValueComparison } from './compare-values.ts';
import { formatDecibels } from './format-figures.ts';
import { GRADES, type Grade, gradeTarget, WORST_FIRST } from './grade-target.ts';
import { firstDiverging } from './rank-values.ts';
import type { Report } from './report.ts';

/** What the charts and tables of values need of a report, whatever kind of model it is on. */
export interface ComparedTargets {
  readonly targets: Readonly<Partial<Record<TargetName, { readonly values: readonly ValueComparison[] }>>>;
  readonly divergenceThreshold: number;
}

/** Targets of a report, in the order they were compiled. */
export function listTargets<T>(report: {
  readonly targets: Readonly<Partial<Record<TargetName, T>>>;
}): [TargetName, T][] {
  return Object.entries(report.targets) as [TargetName, T][];
}

export interface Verdict {
  readonly grade: Grade;
  /** One sentence on all targets. */
  readonly sentence: string;
}

/** What the whole report says, the worst target first: `qnn is no longer the same model; onnx is as good as ...`. */
export function describeVerdict(report: Report): Verdict {
  const grades = listTargets(report).map(([name, target]) => ({ name, grade: gradeTarget(target) }));
  const groups = WORST_FIRST.map((grade) => ({
    grade,
    names: grades.filter((each) => each.grade === grade).map(({ name }) => name as string),
  })).filter(({ names }) => names.length > 0);
  const [worst] = groups;
  if (!worst) return { grade: 'unproven', sentence: 'No target was compiled.' };
  const clauses = groups.map(({ grade, names }) => {
    const plural = names.length > 1;
    const verb = grade === 'unproven' ? (plural ? 'were' : 'was') : plural ? 'are' : 'is';
    return `${joinWords(names)} ${verb} ${GRADES[grade].sentence}`;
  });
  return { grade: worst.grade, sentence: `${clauses.join('; ')}.` };
}

/** Where a target parts from the float model: `layers.0.v_proj at 19.1 dB`, or that it does not. */
export function describeDivergence(values: readonly ValueComparison[], threshold: number): string {
  if (values.length === 0) return 'no values were compared';
  const first = firstDiverging(values, threshold);
  return first ? `${first.name} at ${formatDecibels(first.sqnr)}` : `none under ${threshold} dB`;
}

/** The source nodes of a value in the user's own words. */
export function describeSource(from: readonly string[]): string {
  return from.length > 0 ? from.join(', ') : 'made by npuc';
}

/** `a`, `a and b`, `a, b and c`. */
export function joinWords(words: readonly string[]): string {
  return words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`;
}

/** Cuts the middle out of a text of more than `width` characters: the ends of node names say most. */
export function shortenMiddle(text: string, width: number): string {
  const characters = [...text];
  if (characters.length <= width) return text;
  const head = Math.ceil((width - 1) / 3);
  return `${characters.slice(0, head).join('')}…${characters.slice(characters.length - (width - 1 - head)).join('')}`;
}
