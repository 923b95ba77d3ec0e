import { weightRows } from '../../calibration/weights.ts';
import { affineEncoding, type Encoding } from '../../compiler/ir/encoding.ts';
import type { Value } from '../../compiler/ir/graph.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { type DecoderUnderCheck, REQUEST, runWindows } from './measure-decoder.ts';
import { layerOf, roleOf, weightedMean } from './measurement.ts';
import type { Patch } from './patch-module.ts';

export const ERROR_SOURCES = ['weights', 'activations', 'cache', 'lowering'] as const;
export type ErrorSource = (typeof ERROR_SOURCES)[number];

export interface SourceShare {
  readonly source: ErrorSource;
  /** KL to the float model with this source of error alone. */
  readonly alone: number;
  /** What the total falls by when this source is computed in floats. */
  readonly without: number;
}

/** A change of the recipe, what it would gain, and what it costs. */
export interface Fix {
  /** As a line of the recipe. */
  readonly recipe: string;
  /** KL that it takes away, measured on the same windows. */
  readonly gain: number;
  /** Bytes that the artifact grows by; for a cache, those of one token. */
  readonly bytes: number;
  readonly what: string;
}

export interface Attribution {
  /** KL of the whole. */
  readonly total: number;
  readonly shares: readonly SourceShare[];
  /** The cheapest first that takes away a tenth of the total at least. */
  readonly fixes: readonly Fix[];
}

/** Weights that a fix is tried on, and activations. */
const TRIED = 3;

/**
 * Splits the error of a decoder by toggling its sources, each alone and each left out: rounding of weights, ranges of
 * activations, the key/value cache, and what lowering changes without any integer. What is left over is how they combine.
 */
export async function attributeError(subject: DecoderUnderCheck): Promise<Attribution> {
  const { inputs, steps, decoder, measurement } = subject;
  const caches = cacheNames(subject);
  const sourceOf = (value: Value): ErrorSource =>
    value.data ? 'weights' : caches.has(value.name) ? 'cache' : 'activations';
  const divergence = async (patch: Patch): Promise<number> => {
    const run = await runWindows(inputs, steps, decoder, patch);
    return weightedMean(run.series.divergence, run.predictions);
  };
  const total = weightedMean(measurement.series.divergence!, measurement.predictions);
  const shares: SourceShare[] = [];
  for (const source of ['weights', 'activations', 'cache'] as const) {
    const alone = await divergence({ float: (value) => sourceOf(value) !== source });
    const rest = await divergence({ float: (value) => sourceOf(value) === source });
    shares.push({ source, alone, without: total - rest });
  }
  const lowered = await runWindows(inputs, steps, decoder, {}, decoder.lowerFloat(REQUEST));
  const lowering = weightedMean(lowered.series.divergence, lowered.predictions);
  shares.push({ source: 'lowering', alone: lowering, without: lowering });
  const fixes = [
    ...fixAllWeights(subject, shares.find(({ source }) => source === 'weights')!.without),
    ...(await tryWeights(subject, total, divergence)),
    ...(await tryActivations(subject, total, divergence, caches)),
  ];
  const cache = shares.find(({ source }) => source === 'cache')!;
  if (decoder.recipe.cache === 8) {
    const bytes = measurement.bytes.cache_per_token ?? 0;
    fixes.push({ recipe: 'kv: 16', gain: cache.without, bytes, what: 'a key/value cache of 16 bits' });
  }
  return {
    total,
    shares,
    fixes: fixes
      .filter(({ gain }) => gain >= 0.1 * total)
      .sort((a, b) => a.bytes - b.bytes || b.gain - a.gain || (a.recipe < b.recipe ? -1 : 1)),
  };
}

/** Names of everything that is tied to a cache: its past, its new rows, and both together. */
function cacheNames({ decoder }: DecoderUnderCheck): Set<string> {
  const graph = decoder.stamp(REQUEST).graph();
  const ports = [...graph.states.values()].flatMap(({ input, output }) => [input.name, output.name]);
  const encodings = new Set(ports.map((name) => decoder.plan.activations.get(name)?.encoding));
  encodings.delete(undefined);
  return new Set(
    [...decoder.plan.activations].filter(([, { encoding }]) => encodings.has(encoding)).map(([name]) => name),
  );
}

/** All 4-bit weights in 8 bits, whose own error is next to nothing beside. */
function fixAllWeights({ decoder }: DecoderUnderCheck, gain: number): Fix[] {
  const graph = decoder.stamp(REQUEST).graph();
  const narrow = [...decoder.weightEncodings].filter(([, { dtype }]) => dtype === 'i4');
  if (narrow.length === 0) return [];
  const bytes = narrow.reduce((sum, [name]) => sum + Math.ceil((graph.find(name)?.data?.size ?? 0) / 2), 0);
  return [{ recipe: 'scheme: w8a16', gain, bytes, what: `all ${narrow.length} 4-bit weights in 8 bits` }];
}

/** The 4-bit weights behind the noisiest values, in 8 bits, alone and in all layers. */
async function tryWeights(
  { measurement, decoder, inputs }: DecoderUnderCheck,
  total: number,
  divergence: (patch: Patch) => Promise<number>,
): Promise<Fix[]> {
  const graph = decoder.stamp(REQUEST).graph();
  const noise = new Map(measurement.values.map(({ name, noiseAdded }) => [name, noiseAdded ?? 0]));
  const suspects = [...decoder.weightEncodings]
    .filter(([, { dtype }]) => dtype === 'i4')
    .map(([name]) => ({ name, noise: noise.get(graph.find(name)?.consumers[0]?.output().name ?? '') ?? 0 }))
    .sort((a, b) => b.noise - a.noise)
    .slice(0, TRIED);
  const fixes: Fix[] = [];
  const widen = async (names: readonly string[], match: string, what: string): Promise<void> => {
    const tensors = names.map((name) => decoder.migration.weights.get(name) ?? inputs.weights.get(name)!);
    const encodings = new Map(
      tensors.map((tensor, i) => [
        names[i]!,
        channelEncoding(tensor.shape as [number, number], weightRows(tensor, wasmKernels)),
      ]),
    );
    const after = await divergence({ encodings, dropPayload: true });
    const bytes = tensors.reduce((sum, { size }) => sum + Math.ceil(size / 2), 0);
    fixes.push({
      recipe: `overrides: [{ match: '${match}', weight: { bits: 8 } }]`,
      gain: total - after,
      bytes,
      what: `${what} in 8 bits per channel`,
    });
  };
  for (const { name } of suspects) await widen([name], `^${name.replaceAll('.', '\\.')}$`, name);
  for (const role of new Set(suspects.map(({ name }) => roleOf(name)))) {
    const names = [...decoder.weightEncodings]
      .filter(([name, { dtype }]) => dtype === 'i4' && roleOf(name) === role)
      .map(([name]) => name);
    const match = `^${role.replaceAll('.', '\\.').replaceAll('*', '\\d+')}$`;
    if (names.length > 1) await widen(names, match, `${role} of ${names.length} layers`);
  }
  return fixes;
}

/** 8 bits over the whole range of each output channel of a [K, N] weight. */
function channelEncoding([inputs, outputs]: readonly [number, number], rows: Float32Array): Encoding {
  const scale = Float32Array.from({ length: outputs }, (_, n) => {
    let most = 0;
    for (let k = 0; k < inputs; k++) most = Math.max(most, Math.abs(rows[n * inputs + k]!));
    return Math.fround(most / 127) || 1;
  });
  return { dtype: 'i8', scale, axis: 1 };
}

/** The noisiest 8-bit activations, in 16 bits. */
async function tryActivations(
  { measurement }: DecoderUnderCheck,
  total: number,
  divergence: (patch: Patch) => Promise<number>,
  caches: ReadonlySet<string>,
): Promise<Fix[]> {
  const suspects = measurement.values
    .filter(({ name, encoding }) => encoding && /8$/.test(encoding.dtype) && !caches.has(name))
    .sort((a, b) => (b.noiseAdded ?? 0) - (a.noiseAdded ?? 0))
    .slice(0, TRIED);
  const fixes: Fix[] = [];
  for (const { name, encoding, range } of suspects) {
    const wide = affineEncoding(encoding!.dtype.startsWith('u') ? 'u16' : 'i16', range[0], range[1]);
    const after = await divergence({ encodings: new Map([[name, wide]]) });
    const at = layerOf(name) === undefined ? name : `layer ${layerOf(name)}'s ${name}`;
    fixes.push({
      recipe: `overrides: [{ match: '^${name.replaceAll('.', '\\.')}$', activation: 16 }]`,
      gain: total - after,
      bytes: 0,
      what: `${at} in 16 bits`,
    });
  }
  return fixes;
}
