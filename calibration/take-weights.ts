import { NpucError } from '../compiler/errors.ts';
import { dequantizeConstant, quantizeLazily } from '../compiler/export/quantize-constant.ts';
import type { TakenWeight } from '../compiler/import/quantized/stored-weight.ts';
import { halfToNumber, numberToHalf } from '../compiler/ir/dtype.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Tensor } from '../compiler/ir/tensor.ts';
import type { Plan } from './plan.ts';
import { isDynamic, type NumberFormat, type Recipe, type WeightForm } from './recipe.ts';

/** Integers of a checkpoint as a target writes them. */
export interface FittedWeight {
  readonly encoding: Encoding;
  readonly values: Tensor;
  readonly format: string;
}

/** Blocks that LiteRT's kernels multiply are multiples of this (facts litert 1). */
const BLOCK_STEP = 32;

/** What of a checkpoint's integers a target can hold. */
export interface FittedWeights {
  readonly fitted: ReadonlyMap<string, FittedWeight>;
  /** Why not, by weight name. */
  readonly misfits: ReadonlyMap<string, string>;
}

/**
 * Sorts the integers of a checkpoint into those that a target holds as they are and those that it cannot: NPUs have no zero
 * points in weights, no float scales inside a channel, and LiteRT no -128. Under float activations LiteRT's kernels have
 * blocks of 4 bits with half floats as scales.
 */
export function fitWeights(
  taken: ReadonlyMap<string, TakenWeight>,
  format: NumberFormat,
  recipe: Pick<Recipe, 'scheme'>,
): FittedWeights {
  const fitted = new Map<string, FittedWeight>();
  const misfits = new Map<string, string>();
  for (const [name, { exact, why, format: stored }] of taken) {
    const reason = exact ? misfit(exact.integers, exact.encoding, format, recipe) : why!;
    if (reason !== undefined) misfits.set(name, reason);
    else fitted.set(name, { encoding: exact!.encoding, values: exact!.integers, format: stored });
  }
  return { fitted, misfits };
}

function misfit(
  integers: Tensor,
  { dtype, block, zeroPoint, scale }: Encoding,
  format: NumberFormat,
  recipe: Pick<Recipe, 'scheme'>,
): string | undefined {
  if (format.name === 'onnx') return undefined;
  if (zeroPoint) return 'its integers have zero points, the weights of the target have none';
  const blocks = block !== undefined && isDynamic(recipe) && format.blocks.includes('f16') && dtype === 'i4';
  if (blocks && block % BLOCK_STEP === 0 && integers.shape[0]! % block === 0) {
    const halves = scale.every((each) => halfToNumber(numberToHalf(each)) === each);
    return halves ? undefined : 'its scales are no half floats';
  }
  if (block !== undefined) return 'its scales are floats for groups of input channels, which the target does not have';
  if (format.name === 'litert' && dtype === 'i8' && integers.toNumbers().includes(-128))
    return 'it has the integer -128, LiteRT takes -127 to 127';
  return undefined;
}

/** @throws QT133 naming the first weight that does not fit, and how many there are */
export function requireFit({ fitted, misfits }: FittedWeights, format: NumberFormat): void {
  const [first] = misfits;
  if (!first) return;
  throw new NpucError('QT133', {
    message: `the target (${format.name}) cannot hold ${misfits.size} of ${misfits.size + fitted.size} quantized weights of the checkpoint: ${first[1]}`,
    where: first[0],
    hint: '--target onnx holds them as they are; --requantize rounds what does not fit again, and says what it costs',
  });
}

/** A plan in which the integers that are taken over have the form that they have. */
export function adoptFitted(plan: Plan, { fitted, misfits }: FittedWeights): Plan {
  if (fitted.size === 0 && misfits.size === 0) return plan;
  const weights = new Map(plan.weights);
  let count = 0;
  let stored = '';
  for (const [name, { encoding, format }] of fitted) {
    const planned = weights.get(name);
    if (!planned) continue;
    weights.set(name, { ...planned, form: formOf(encoding), why: `taken over as it is: ${format}` });
    stored = format;
    count++;
  }
  const remarks = plan.remarks.filter((remark) => ![...fitted.keys()].some((name) => remark.startsWith(`${name}:`)));
  if (count > 0)
    remarks.unshift(
      `${count} of ${weights.size} weights are the checkpoint's own integers (${stored}); nothing was moved between layers`,
    );
  return { ...plan, weights, remarks };
}

function formOf({ dtype, block = 0 }: Encoding): WeightForm {
  const bits = dtype.endsWith('4') ? 4 : 8;
  return block === 0 ? { bits, block } : { bits, block: block as WeightForm['block'], scales: 'f16' };
}

/**
 * What rounding again costs: dB of the weights that did not fit against what their new integers stand for.
 * @param float the weights that were rounded, by name
 */
export function describeLoss(
  { misfits }: FittedWeights,
  float: ReadonlyMap<string, Tensor>,
  encodings: ReadonlyMap<string, Encoding>,
  rounded: ReadonlyMap<string, Tensor>,
): string[] {
  if (misfits.size === 0) return [];
  const reasons = [...new Set(misfits.values())].join('; ');
  let [signal, noise] = [0, 0];
  let worst = { name: '', decibels: Number.POSITIVE_INFINITY };
  for (const name of misfits.keys()) {
    const [data, encoding] = [float.get(name), encodings.get(name)];
    if (!data || !encoding) continue;
    const before = data.toFloats();
    const after = dequantizeConstant(rounded.get(name) ?? quantizeLazily(data, encoding, name), encoding);
    let [power, error] = [0, 0];
    for (let i = 0; i < before.length; i++) {
      power += before[i]! * before[i]!;
      error += (before[i]! - after[i]!) ** 2;
    }
    signal += power;
    noise += error;
    const decibels = 10 * Math.log10(power / error);
    if (decibels < worst.decibels) worst = { name, decibels };
  }
  const all = noise === 0 ? 'nothing was lost' : `${(10 * Math.log10(signal / noise)).toFixed(1)} dB`;
  const least = worst.name === '' ? '' : `, least ${worst.name} at ${worst.decibels.toFixed(1)} dB`;
  return [`${misfits.size} quantized weights of the checkpoint were rounded again (${reasons}): ${all}${least}`];
}
