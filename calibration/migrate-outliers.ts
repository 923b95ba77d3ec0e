import { Tensor, transposeTensor } from '../compiler/ir/tensor.ts';
import type { Kernels } from '../compiler/kernels/kernels.ts';
import { type NumberFormat, type Recipe, usableForm, type WeightForm } from './recipe.ts';
import type { MovedScale } from './search-cache.ts';
import type { ChannelStatistics, Statistics, ValueStatistics } from './statistics.ts';
import { searchWeight, weightRows } from './weights.ts';

/**
 * A place where scale can move from an activation's channels into the weights that read it without changing the model:
 * the op before it (a norm's weight, or the output channels of a linear layer) is divided, the linear weights multiplied.
 */
export interface MigrationSite {
  /** The activation whose channels are scaled. */
  readonly value: string;
  /**
   * Weight of the norm before it, [K]; or the linear layer whose output channels carry it, and the values between: with a
   * bias there is one before and one behind the addition.
   */
  readonly before:
    | { readonly kind: 'norm'; readonly weight: string }
    | { readonly kind: 'linear'; readonly weight: string; readonly values: readonly string[] };
  /** Linear weights [K, N] that read it. */
  readonly readers: readonly string[];
}

/** The sites of a Llama-family decoder: both norms, and up_proj into down_proj through the gated product. */
export function decoderSites(layers: number): MigrationSite[] {
  return Array.from({ length: layers }, (_, layer) => {
    const at = `layers.${layer}`;
    const module = `model.layers.${layer}`;
    return [
      {
        value: `${at}.attn_norm`,
        before: { kind: 'norm', weight: `${module}.input_layernorm.weight` },
        readers: ['q_proj', 'k_proj', 'v_proj'].map((name) => `${module}.self_attn.${name}.weight`),
      },
      {
        value: `${at}.mlp_norm`,
        before: { kind: 'norm', weight: `${module}.post_attention_layernorm.weight` },
        readers: ['gate_proj', 'up_proj'].map((name) => `${module}.mlp.${name}.weight`),
      },
      {
        value: `${at}.mlp_product`,
        before: {
          kind: 'linear',
          weight: `${module}.mlp.up_proj.weight`,
          values: [`${at}.up_proj`, `${at}.up_proj.matmul`],
        },
        readers: [`${module}.mlp.down_proj.weight`],
      },
    ] satisfies MigrationSite[];
  }).flat();
}

export interface Migration {
  readonly weights: Map<string, Tensor>;
  readonly statistics: Map<string, ValueStatistics>;
  /** Exponent chosen at each site. */
  readonly exponents: ReadonlyMap<string, number>;
  /** The same with the scales that moved. */
  readonly moved: ReadonlyMap<string, MovedScale>;
}

/** At most this many output channels of a weight take part in the search for an exponent: evenly spaced ones. */
const SEARCH_ROWS = 128;
const CANDIDATES = [0, 0.25, 0.5, 0.75] as const;

/**
 * Moves outliers from activations into weights. With a fixed exponent a: s_k = max|x_k|^a / max|w_k|^(1-a)
 * (SmoothQuant, 2211.10438 eq. 4). With `search`: s_k = rms(x_k)^a, the exponent that leaves the least activation-weighted
 * weight error at the planned width (AWQ, 2306.00978 eq. 4 and 5). The model's float function is unchanged.
 * @param known what an earlier search has found: nothing is searched then
 */
export async function migrateOutliers(
  weights: ReadonlyMap<string, Tensor>,
  sites: readonly MigrationSite[],
  statistics: Statistics,
  recipe: Recipe,
  format: NumberFormat,
  kernels: Kernels,
  known?: ReadonlyMap<string, MovedScale>,
): Promise<Migration> {
  const result = {
    weights: new Map(weights),
    statistics: new Map(statistics),
    exponents: new Map<string, number>(),
    moved: new Map<string, MovedScale>(),
  };
  if (recipe.migration === 0) return result;
  for (const site of sites) {
    const channels = result.statistics.get(site.value)?.channels;
    // A product with a bound has it for all of its channels alike.
    if (!channels || weights.has(site.readers[0]!.replace(/weight$/, 'outliers.bound'))) continue;
    const { scales, exponent } =
      known?.get(site.value) ??
      (recipe.migration === 'search'
        ? await searchExponent(
            result.weights,
            site,
            channels,
            usableForm(recipe.weight, channels.min.length, format),
            kernels,
          )
        : {
            scales: smoothScales(result.weights, site, channels, recipe.migration, kernels),
            exponent: recipe.migration,
          });
    result.exponents.set(site.value, exponent);
    result.moved.set(site.value, { exponent, ...(exponent === 0 || !scales ? {} : { scales }) });
    if (exponent === 0 || !scales) continue;
    applyScales(result.weights, result.statistics, site, scales);
  }
  return result;
}

function smoothScales(
  weights: ReadonlyMap<string, Tensor>,
  site: MigrationSite,
  channels: ChannelStatistics,
  exponent: number,
  kernels: Kernels,
): Float32Array {
  const count = channels.min.length;
  const weightMax = new Float32Array(count);
  for (const name of site.readers) {
    const rows = weightRows(weights.get(name)!, kernels);
    for (let start = 0; start < rows.length; start += count) {
      for (let k = 0; k < count; k++) {
        const magnitude = Math.abs(rows[start + k]!);
        if (magnitude > weightMax[k]!) weightMax[k] = magnitude;
      }
    }
  }
  return Float32Array.from({ length: count }, (_, k) => {
    const activation = Math.max(-channels.min[k]!, channels.max[k]!);
    if (activation <= 0 || weightMax[k]! <= 0) return 1;
    return clampScale(activation ** exponent / weightMax[k]! ** (1 - exponent));
  });
}

function clampScale(scale: number): number {
  return Math.min(1e3, Math.max(1e-3, scale));
}

async function searchExponent(
  weights: ReadonlyMap<string, Tensor>,
  site: MigrationSite,
  channels: ChannelStatistics,
  form: WeightForm,
  kernels: Kernels,
): Promise<{ scales: Float32Array; exponent: number }> {
  const count = channels.min.length;
  const samples = site.readers.map((name) => sampleRows(weightRows(weights.get(name)!, kernels), count));
  const rms = channels.meanSquare.map((square) => Math.sqrt(square));
  let best = { scales: new Float32Array(count).fill(1), exponent: 0, error: Number.POSITIVE_INFINITY };
  for (const exponent of CANDIDATES) {
    const powers = rms.map((value) => (value > 0 ? value ** exponent : 1));
    // Centred so that weights keep their size: the square root of the extremes' product, as AWQ does.
    const centre = Math.sqrt(powers.reduce((a, b) => Math.max(a, b)) * powers.reduce((a, b) => Math.min(a, b)));
    const scales = Float32Array.from(powers, (power) => clampScale(power / centre));
    const importance = Float32Array.from(scales, (scale, k) => channels.meanSquare[k]! / (scale * scale));
    let error = 0;
    for (const sample of samples) {
      const scaled = sample.map((weight, i) => weight * scales[i % count]!);
      error += (await searchWeight(scaled, scaled.length / count, count, form, importance, kernels, site.value)).error;
    }
    if (error < best.error) best = { scales, exponent, error };
  }
  return best;
}

function sampleRows(rows: Float32Array, columns: number): Float32Array {
  const total = rows.length / columns;
  if (total <= SEARCH_ROWS) return rows.slice();
  const sample = new Float32Array(SEARCH_ROWS * columns);
  for (let i = 0; i < SEARCH_ROWS; i++) {
    const row = Math.floor((i * total) / SEARCH_ROWS);
    sample.set(rows.subarray(row * columns, (row + 1) * columns), i * columns);
  }
  return sample;
}

function applyScales(
  weights: Map<string, Tensor>,
  statistics: Map<string, ValueStatistics>,
  site: MigrationSite,
  scales: Float32Array,
): void {
  const divide = (name: string): void => {
    statistics.set(name, divideStatistics(statistics.get(name)!, scales));
  };
  divide(site.value);
  if (site.before.kind === 'norm') {
    const floats = weights.get(site.before.weight)!.toFloats();
    weights.set(
      site.before.weight,
      Tensor.of(
        'f32',
        [floats.length],
        floats.map((weight, k) => weight / scales[k]!),
      ),
    );
  } else {
    weights.set(
      site.before.weight,
      scaleRows(weights.get(site.before.weight)!, (row) => 1 / scales[row]!, undefined),
    );
    const bias = site.before.weight.replace(/weight$/, 'bias');
    const tensor = weights.get(bias);
    if (tensor)
      weights.set(
        bias,
        Tensor.of(
          'f32',
          tensor.shape,
          tensor.toFloats().map((value, k) => value / scales[k]!),
        ),
      );
    for (const name of site.before.values) if (statistics.has(name)) divide(name);
  }
  for (const name of site.readers) weights.set(name, scaleRows(weights.get(name)!, undefined, scales));
}

/** A [K, N] weight, lazily, with its output channels or its input channels scaled. */
function scaleRows(
  weight: Tensor,
  outputScale: ((output: number) => number) | undefined,
  inputScales: Float32Array | undefined,
): Tensor {
  const rows = transposeTensor(weight);
  const [outputs, inputs] = rows.shape as [number, number];
  const scaled = new Tensor('f32', rows.shape, {
    kind: 'derived',
    compute: () => {
      const floats = rows.toFloats().slice();
      for (let row = 0; row < outputs; row++) {
        const start = row * inputs;
        const factor = outputScale?.(row) ?? 1;
        for (let k = 0; k < inputs; k++) floats[start + k] = floats[start + k]! * (inputScales?.[k] ?? factor);
      }
      return new Uint8Array(floats.buffer);
    },
  });
  return transposeTensor(scaled);
}

function divideStatistics(seen: ValueStatistics, scales: Float32Array): ValueStatistics {
  const channels = seen.channels;
  if (!channels) return seen;
  const min = channels.min.map((value, k) => value / scales[k]!);
  const max = channels.max.map((value, k) => value / scales[k]!);
  const meanSquare = channels.meanSquare.map((value, k) => value / (scales[k]! * scales[k]!));
  const before = Math.sqrt(channels.meanSquare.reduce((a, b) => a + b, 0));
  const after = Math.sqrt(meanSquare.reduce((a, b) => a + b, 0));
  return {
    min: min.reduce((a, b) => Math.min(a, b)),
    max: max.reduce((a, b) => Math.max(a, b)),
    typical: before > 0 ? (seen.typical * after) / before : seen.typical,
    channels: { min, max, meanSquare },
  };
}
