import type { Recipe } from '../../calibration/recipe.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import type { Baseline } from './baseline.ts';
import { keepsFloats } from './compare-stages.ts';
import type { Judgement } from './judge.ts';
import { layerOf, type MeasuredValue, type Measurement, type MetricKey, roleOf, weightedMean } from './measurement.ts';
import type { Patch } from './patch-module.ts';

/** Something that was swapped back, and how much of the regression went with it. */
export interface Trial {
  readonly kind: 'import' | 'pass' | 'recipe' | 'range' | 'weight' | 'layer';
  /** What was swapped back. */
  readonly what: string;
  /** 1: all of the regression is gone; 0: none of it. */
  readonly recovered: number;
}

export interface Culprit extends Trial {
  /** One sentence. */
  readonly why: string;
  /** The values, weights or recipe keys that it is about. */
  readonly names: readonly string[];
  readonly layers: readonly number[];
  /** The user's own nodes. */
  readonly from: readonly string[];
  /** Path in the baseline file. */
  readonly at: string;
}

export interface Search {
  readonly culprit?: Culprit;
  /** Everything that was tried, in order of suspicion. */
  readonly trials: readonly Trial[];
}

/** Where a step of lowering first changes what the float model computes. */
export interface StageValue {
  /** The pass, where the step is several. */
  readonly pass?: string;
  readonly name: string;
  readonly from: readonly string[];
  readonly sqnr: number;
}

/** What was measured and can be measured again with something swapped back: a decoder or an ONNX model. */
export interface Subject {
  readonly measurement: Measurement;
  /** Encodings of activations by name; what is tied together shares one object. */
  readonly activations: ReadonlyMap<string, { readonly encoding: Encoding }>;
  readonly weightEncodings: ReadonlyMap<string, Encoding>;
  /** The metrics with a patch, or under another recipe. */
  run(patch: Patch, recipe?: Recipe): Promise<Pick<Measurement, 'predictions' | 'series'>>;
  /** Some values with a patch, or under another recipe. */
  values(patch: Patch, only: ReadonlySet<string>, recipe?: Recipe): Promise<MeasuredValue[]>;
  /** The float model's loss with weights in the place of others: name to name. */
  runFloat?(names: ReadonlyMap<string, string>): Promise<number>;
  /** Looks into a step of lowering that changes the float model. */
  lookInto(stage: string): Promise<StageValue | undefined>;
}

/** Recovered share of a regression that makes a swap the culprit. */
const ENOUGH = 0.7;
/** Single swaps that are tried, the most suspicious first. */
const SINGLES = 6;
/** Movement of a scale, as a logarithm, under which it is no suspect. */
const LEAST_SHIFT = 0.15;

interface Candidate {
  readonly kind: Trial['kind'];
  readonly what: string;
  readonly why: string;
  readonly names: readonly string[];
  readonly patch: Patch;
}

/**
 * Finds what broke a model: swaps parts back to what the baseline has, in order of suspicion, and measures how much of the
 * regression goes away. First what must not change at all (imported weights, steps of lowering), then lines of the recipe,
 * ranges, weight scales, and at last whole layers, which are computed in floats.
 */
export async function findCulprit(subject: Subject, baseline: Baseline, judgement: Judgement): Promise<Search> {
  const trials: Trial[] = [];
  const trouble = describeTrouble(subject, baseline, judgement);
  const found =
    (await trySources(subject, baseline, trials)) ??
    (await tryStages(subject, baseline, trials)) ??
    (await tryRecipe(subject, baseline, trouble, trials)) ??
    (await tryCandidates(listCandidates(subject, baseline), subject, trouble, trials)) ??
    (await tryLayers(subject, trouble, trials));
  return { ...(found ? { culprit: found } : {}), trials };
}

/** What is wrong, as one number that a swap should bring back: lower is better. */
interface Trouble {
  readonly before: number;
  readonly now: number;
  readonly measure: (patch: Patch, recipe?: Recipe) => Promise<number>;
}

function describeTrouble(subject: Subject, { measurement: base }: Baseline, judgement: Judgement): Trouble {
  const { measurement: now } = subject;
  const failed = judgement.metrics.filter(({ verdict }) => verdict === 'regression');
  const worst = failed.sort((a, b) => b.worse / b.noise - a.worse / a.noise)[0];
  if (worst) {
    const { key, better } = worst.metric;
    const sign = better === 'lower' ? 1 : -1;
    const mean = ({ series, predictions }: Pick<Measurement, 'predictions' | 'series'>): number =>
      sign * weightedMean(series[key as MetricKey]!, predictions);
    return {
      before: mean(base),
      now: mean(now),
      measure: async (patch, recipe) => mean(await subject.run(patch, recipe)),
    };
  }
  // No metric moved: the first failing value's noise.
  const values = judgement.findings.filter(({ kind, level }) => kind === 'value' && level === 'regression');
  const first = now.values.find(({ name }) => values.some(({ subject: failing }) => failing === name))?.name ?? '';
  const share = (of: readonly MeasuredValue[]): number => {
    const value = of.find(({ name }) => name === first);
    return value ? 10 ** (-value.sqnr / 10) : 0;
  };
  return {
    before: share(base.values),
    now: share(now.values),
    measure: async (patch, recipe) => share(await subject.values(patch, new Set([first]), recipe)),
  };
}

function recoveredBy(trouble: Trouble, after: number): number {
  const whole = trouble.now - trouble.before;
  return whole > 0 ? (trouble.now - after) / whole : 0;
}

/** Weights that are not those of the baseline, though the checkpoint is: the import reads them wrongly. */
async function trySources(
  subject: Subject,
  { measurement: base }: Baseline,
  trials: Trial[],
): Promise<Culprit | undefined> {
  const before = new Map(base.weights.map(({ name, digest }) => [name, digest]));
  const changed = subject.measurement.weights.filter(
    ({ name, digest }) => digest !== '' && before.get(name) && before.get(name) !== digest,
  );
  if (changed.length === 0) return undefined;
  const names = changed.map(({ name }) => name);
  // Where the same bytes are found under another name, the names are swapped, and can be swapped back.
  const byDigest = new Map(subject.measurement.weights.map(({ name, digest }) => [digest, name]));
  const back = new Map(
    names.filter((name) => byDigest.has(before.get(name)!)).map((name) => [name, byDigest.get(before.get(name)!)!]),
  );
  const swapped = back.size === names.length;
  let recovered = 0;
  if (swapped && subject.runFloat) {
    const loss = (of: Measurement): number => weightedMean(of.series.floatLoss!, of.predictions);
    const whole = loss(subject.measurement) - loss(base);
    recovered = whole > 0 ? (loss(subject.measurement) - (await subject.runFloat(back))) / whole : 1;
  }
  const what = joinNames(names);
  const why = swapped
    ? `the checkpoint is the same, but ${what} were read in one another's place`
    : `the checkpoint is the same, but ${what} ${names.length > 1 ? 'hold' : 'holds'} other numbers than it did`;
  const trial: Trial = { kind: 'import', what: `weights ${what}`, recovered };
  trials.push(trial);
  return { ...trial, why, names, ...locate(subject, names), at: `weights.${names[0]}` };
}

/** Steps of lowering that change what the float model computes. */
async function tryStages(
  subject: Subject,
  { measurement: base }: Baseline,
  trials: Trial[],
): Promise<Culprit | undefined> {
  const { stages } = subject.measurement;
  const before = new Map(base.stages.map((stage) => [stage.name, stage.sqnr]));
  const bad = stages.find(({ name, sqnr }) => !keepsFloats(sqnr, before.get(name)));
  for (const { name, sqnr } of stages) {
    const broken = name === bad?.name;
    trials.push({ kind: 'pass', what: name, recovered: broken ? 1 : 0 });
    if (!broken) continue;
    const value = await subject.lookInto(name);
    const at = value ? `, first in ${value.name} (${value.sqnr.toFixed(1)} dB)` : '';
    const names = value ? [value.name] : [];
    const was = before.has(name) ? ` where it had ${before.get(name)!.toFixed(1)}` : '';
    return {
      kind: 'pass',
      what: value?.pass ?? name,
      recovered: 1,
      why: `${value?.pass ?? name} changes what the float model computes: ${sqnr.toFixed(1)} dB${was}${at}`,
      names,
      layers: layersOf(names),
      from: value?.from ?? [],
      at: `stages.${name}`,
    };
  }
  return undefined;
}

/** Lines of the recipe that are not those of the baseline, one by one. */
async function tryRecipe(
  subject: Subject,
  { measurement: base }: Baseline,
  trouble: Trouble,
  trials: Trial[],
): Promise<Culprit | undefined> {
  const now = subject.measurement.recipe as unknown as Record<string, unknown>;
  const before = base.recipe as unknown as Record<string, unknown>;
  const keys = [...new Set([...Object.keys(before), ...Object.keys(now)])].filter(
    // A rotation is another set of weights: it cannot be swapped back alone.
    (key) => key !== 'rotation' && JSON.stringify(before[key]) !== JSON.stringify(now[key]),
  );
  let best: Culprit | undefined;
  for (const key of keys) {
    const recipe = { ...now, [key]: before[key] } as unknown as Recipe;
    if (before[key] === undefined) delete (recipe as unknown as Record<string, unknown>)[key];
    const recovered = recoveredBy(trouble, await trouble.measure({}, recipe));
    const trial: Trial = { kind: 'recipe', what: `${key}: ${JSON.stringify(now[key])}`, recovered };
    trials.push(trial);
    if (recovered < ENOUGH || (best && best.recovered >= recovered)) continue;
    const names = [key];
    const why = `the recipe says ${key}: ${JSON.stringify(now[key])} where the baseline has ${JSON.stringify(before[key])}`;
    best = { ...trial, why, names, layers: [], from: [], at: `recipe.${key}` };
  }
  return best;
}

/** Encodings and weight scales that moved by more than draws of the calibration move them: alone, by role, by layer, all. */
function listCandidates(subject: Subject, { measurement: base, noise }: Baseline): Candidate[] {
  const limit = Math.max(LEAST_SHIFT, 3 * noise.scale);
  const moved: { kind: 'range' | 'weight'; name: string; shift: number; encoding: Encoding }[] = [];
  const before = new Map(base.values.map((value) => [value.name, value]));
  for (const { name, encoding } of subject.measurement.values) {
    const old = before.get(name)?.encoding;
    if (!old || !encoding || old.dtype !== encoding.dtype) continue;
    const shift = Math.log(encoding.scale / old.scale);
    if (Math.abs(shift) <= limit) continue;
    moved.push({
      kind: 'range',
      name,
      shift,
      encoding: {
        dtype: old.dtype as Encoding['dtype'],
        scale: Float32Array.of(old.scale),
        zeroPoint: Int32Array.of(old.zero),
      },
    });
  }
  const scales = new Map(base.weights.map((weight) => [weight.name, weight]));
  for (const { name, form, scale } of subject.measurement.weights) {
    const old = scales.get(name);
    const encoding = subject.weightEncodings.get(name);
    if (!old || !encoding || old.form !== form) continue;
    const shift = Math.log(scale / old.scale);
    if (Math.abs(shift) <= LEAST_SHIFT) continue;
    const factor = old.scale / scale;
    moved.push({
      kind: 'weight',
      name,
      shift,
      encoding: { ...encoding, scale: encoding.scale.map((each) => each * factor) },
    });
  }
  moved.sort((a, b) => Math.abs(b.shift) - Math.abs(a.shift));
  const make = (members: typeof moved, what: string): Candidate => {
    const encodings = new Map<string, Encoding>();
    for (const { name, encoding } of members)
      for (const tied of tiedNames(subject, name)) encodings.set(tied, encoding);
    const kind = members[0]!.kind;
    const factor = Math.exp(members[0]!.shift);
    const grew = factor > 1 ? `grew ${factor.toFixed(2)} times` : `shrank to ${(100 * factor).toFixed(0)} %`;
    return {
      kind,
      what: `${kind === 'range' ? 'range' : 'scale'} of ${what}`,
      why: `the ${kind === 'range' ? 'range' : 'scale'} of ${what} ${grew}${describeCause(subject, members[0]!.name, factor)}`,
      names: members.map(({ name }) => name),
      patch: { encodings },
    };
  };
  const groups = (key: (name: string) => string): (typeof moved)[] => {
    const byKey = new Map<string, typeof moved>();
    for (const each of moved) byKey.set(key(each.name), [...(byKey.get(key(each.name)) ?? []), each]);
    return [...byKey.values()].filter((members) => members.length > 1);
  };
  const roles = groups(roleOf);
  return [
    ...moved.slice(0, SINGLES).map((each) => make([each], each.name)),
    ...roles.map((members) => make(members, `${roleOf(members[0]!.name)} in ${members.length} layers`)),
    // Keys and values of a cache are one thing.
    ...groups((name) => (/^(new|past|kv)_/.test(name) ? 'cache' : '')).map((members) =>
      make(members, /^(new|past|kv)_/.test(members[0]!.name) ? 'the key/value cache' : 'everything else that moved'),
    ),
    ...groups((name) => String(layerOf(name) ?? '')).map((members) =>
      make(members, `layer ${layerOf(members[0]!.name) ?? 'none'}`),
    ),
    ...(moved.length > 1 ? [make(moved, `all ${moved.length} values that moved`)] : []),
  ];
}

/** Every value of the graph that has the very same encoding object of the plan: what moves a value, and a cache's other parts. */
function tiedNames({ activations }: Subject, name: string): string[] {
  const own = activations.get(name)?.encoding;
  if (!own) return [name];
  return [...activations].filter(([, { encoding }]) => encoding === own).map(([tied]) => tied);
}

/** What usually moves a range like that. */
function describeCause(subject: Subject, name: string, factor: number): string {
  const value = subject.measurement.values.find((each) => each.name === name);
  const reach = value?.encoding ? -value.encoding.scale * value.encoding.zero : 0;
  if (/mask/.test(name) && reach < -1e4) return `: a mask of ${reach.toFixed(0)} takes all its steps, npuc's is -50`;
  return factor < 1 && value ? ': larger values are cut off' : '';
}

async function tryCandidates(
  candidates: readonly Candidate[],
  subject: Subject,
  trouble: Trouble,
  trials: Trial[],
): Promise<Culprit | undefined> {
  let best: { candidate: Candidate; recovered: number } | undefined;
  for (const candidate of candidates) {
    const recovered = recoveredBy(trouble, await trouble.measure(candidate.patch));
    trials.push({ kind: candidate.kind, what: candidate.what, recovered });
    // A larger set must explain clearly more than a smaller one.
    if (!best || recovered > best.recovered + 0.1) best = { candidate, recovered };
    if (best.recovered >= 0.9) break;
  }
  if (!best || best.recovered < ENOUGH) return undefined;
  const { kind, what, why, names } = best.candidate;
  const at = `${kind === 'weight' ? 'weights' : 'values'}.${names[0]}`;
  return { kind, what, why, names, recovered: best.recovered, ...locate(subject, names), at };
}

/** Layers computed in floats, those that bring in most noise first. */
async function tryLayers(subject: Subject, trouble: Trouble, trials: Trial[]): Promise<Culprit | undefined> {
  const added = new Map<number, number>();
  for (const { name, noiseAdded } of subject.measurement.values) {
    const layer = layerOf(name);
    if (layer !== undefined) added.set(layer, (added.get(layer) ?? 0) + Math.max(0, noiseAdded ?? 0));
  }
  const order = [...added].sort((a, b) => b[1] - a[1]).slice(0, SINGLES);
  let best: Culprit | undefined;
  for (const [layer] of order) {
    const patch: Patch = { float: ({ name }) => layerOf(name) === layer };
    const recovered = recoveredBy(trouble, await trouble.measure(patch));
    const what = `layer ${layer}`;
    trials.push({ kind: 'layer', what, recovered });
    if (recovered < ENOUGH || (best && best.recovered >= recovered)) continue;
    const names = subject.measurement.values.filter(({ name }) => layerOf(name) === layer).map(({ name }) => name);
    best = {
      kind: 'layer',
      what,
      recovered,
      why: `with layer ${layer} in floats the regression is gone`,
      names,
      layers: [layer],
      from: [`model.layers.${layer}`],
      at: `values.${names[0]}`,
    };
  }
  return best;
}

function locate(subject: Subject, names: readonly string[]): Pick<Culprit, 'layers' | 'from'> {
  const from = names.flatMap(
    (name) =>
      subject.measurement.values.find((value) => value.name === name)?.from ?? [name.replace(/\.(weight|bias)$/, '')],
  );
  return { layers: layersOf(names), from: [...new Set(from)] };
}

function layersOf(names: readonly string[]): number[] {
  const layers = names.map(layerOf).filter((layer) => layer !== undefined);
  return [...new Set(layers)].sort((a, b) => a - b);
}

function joinNames(names: readonly string[]): string {
  return names.length <= 3 ? names.join(' and ') : `${names.slice(0, 2).join(', ')} and ${names.length - 2} more`;
}
