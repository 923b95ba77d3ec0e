import type { Decision, DecisionRange, SeenValue } from '../calibration/describe-decisions.ts';
import { encodingBits } from '../compiler/ir/encoding.ts';
import type { ExplainedDecision } from './jobs/explain-value.ts';

/** Names of a list that are shown before the rest is counted. */
const SHOWN = 6;

/** How the encodings of one name came about, for people; targets that decided alike share a text. */
export function renderDecisions(name: string, decisions: readonly ExplainedDecision[]): string {
  const texts = new Map<string, string[]>();
  for (const { target, ...decision } of decisions) {
    const text = renderDecision(name, decision);
    texts.set(text, [...(texts.get(text) ?? []), target]);
  }
  return [...texts].map(([text, targets]) => `${targets.join(', ')}\n${text}`).join('\n');
}

function renderDecision(name: string, decision: Decision): string {
  const { values, nodes, why, range, moved, rotation, rounding, weighedBy } = decision;
  const others = values.filter((value) => value !== name);
  const rows: [string, string][] = [
    [decision.kind, values.includes(name) ? name : values[0]!],
    ...(nodes.length > 0 ? [['your node', list(nodes)] as [string, string]] : []),
    ['encoding', describeEncoding(decision)],
    ['why', why],
    ...(range ? describeRange(range, decision) : []),
    ...(weighedBy
      ? [['scales', `searched for the least error weighed by the mean squares of ${weighedBy}`] as [string, string]]
      : []),
    ...(rounding ? [['rounding', describeRounding(rounding)] as [string, string]] : []),
    ...(moved
      ? [
          [
            'migration',
            `scale moved from the channels of ${moved.from} into ${list(moved.into)} (exponent ${moved.exponent})`,
          ] as [string, string],
        ]
      : []),
    ...(rotation
      ? [['rotation', 'the residual stream and the values of each head are rotated (hadamard)'] as [string, string]]
      : []),
    ...(others.length > 0 && values.includes(name) ? [['tied with', list(others)] as [string, string]] : []),
  ];
  return rows.map(([key, text]) => `  ${key.padEnd(11)}${text}\n`).join('');
}

function list(names: readonly string[]): string {
  const rest = names.length - SHOWN;
  return names.slice(0, SHOWN).join(', ') + (rest > 0 ? ` and ${rest} more` : '');
}

const short = (value: number): string => (value === 0 ? '0' : String(Number(value.toPrecision(4))));

function describeEncoding({ dtype, form, block, scales, zeroPoint, spans }: Decision): string {
  if (spans)
    return `${dtype}, scale ${short(scales.least)}, zero point ${zeroPoint}: ${short(spans[0])} to ${short(spans[1])}`;
  const shape =
    form === 'lpbq'
      ? `blocks of ${block} in two levels (LPBQ)`
      : form === 'block'
        ? `blocks of ${block}`
        : 'a scale per channel';
  return `${dtype}, ${shape}: ${scales.count} scales, ${short(scales.least)} to ${short(scales.most)}`;
}

function describeRange(
  { source, method, seen = [], constants = [] }: DecisionRange,
  decision: Decision,
): [string, string][] {
  switch (source) {
    case 'kernel':
      return [['range', "fixed by the target's kernels"]];
    case 'constant':
      return [['range', 'of the constant itself']];
    case 'file':
      return [['range', 'from the file of encodings']];
    case 'calibration':
      return [
        ['range', `${method} of what calibration saw`],
        ...seen.slice(0, SHOWN).map((each): [string, string] => ['  seen', describeSeen(each, decision)]),
        ...(constants.length > 0 ? [['  and', `all elements of ${list(constants)}`] as [string, string]] : []),
        ...(seen.length > SHOWN ? [['  seen', `and ${seen.length - SHOWN} more values`] as [string, string]] : []),
      ];
  }
}

function describeSeen({ value, min, max, typical, taken }: SeenValue, { dtype, scales }: Decision): string {
  const decibels = 20 * Math.log10(typical / (scales.least / Math.sqrt(12)));
  const left = typical > 0 ? `, which keeps ${decibels.toFixed(0)} dB at ${encodingBits(dtype)} bits` : '';
  const clip = taken ? `; ${describeClip(min, max, taken)}` : '';
  return `${value}: ${short(min)} to ${short(max)}, typical row ${short(typical)}${left}${clip}`;
}

function describeClip(min: number, max: number, [low, high]: readonly [number, number]): string {
  const share = (high - low) / (max - min);
  const range = `${short(low)} to ${short(high)}`;
  return share < 1
    ? `clipped to ${range} (${((1 - share) * 100).toFixed(1)} % of the range cut off)`
    : `widened to ${range} for inputs that calibration has not seen`;
}

function describeRounding(rounding: NonNullable<Decision['rounding']>): string {
  if (rounding === 'gptq') return 'gptq: each integer makes up for the errors of those before it';
  return rounding === 'nearest' ? 'to the nearest integer' : "the checkpoint's own integers";
}

/** What has an encoding and why, counted: what `npuc explain` prints for a folder. */
export function renderReasons(decisions: readonly ExplainedDecision[]): string {
  const reasons = new Map<string, { count: number; example: string }>();
  for (const { target, kind, dtype, why, values } of decisions) {
    const key = [target, kind, dtype, generalize(why)].join('\t');
    const known = reasons.get(key);
    if (known) known.count += values.length;
    else reasons.set(key, { count: values.length, example: values[0]! });
  }
  const rows = [...reasons].map(([key, { count, example }]) => {
    const [target, kind, dtype, why] = key.split('\t') as [string, string, string, string];
    return `${target.padEnd(7)}${kind.padEnd(11)}${dtype.padEnd(4)} ${String(count).padStart(6)}  ${why}, such as ${example}`;
  });
  return `${rows.join('\n')}\n`;
}

/** Reasons that differ in a number or a name only. */
function generalize(why: string): string {
  return why.replace(/a typical row( of \S+)? would keep -?\d+ dB/, 'a typical row would keep too little');
}
