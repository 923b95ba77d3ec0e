import { NpucError } from '../compiler/errors.ts';
import { dequantizeConstant, quantizeLazily } from '../compiler/export/quantize-constant.ts';
import type { TakenWeight } from '../compiler/import/quantized/stored-weight.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';
import type { Tensor } from '../compiler/ir/tensor.ts';
import type { Plan } from './plan.ts';
import type { NumberFormat, WeightForm } from './recipe.ts';

/** Integers of a checkpoint as a target writes them. */
export interface FittedWeight {
  readonly encoding: Encoding;
  readonly values: Tensor;
  readonly format: string;
}

/** What of a checkpoint's integers a target can hold. */
export interface FittedWeights {
  readonly fitted: ReadonlyMap<string, FittedWeight>;
  /** Why not, by weight name. */
  readonly misfits: ReadonlyMap<string, string>;
}

/**
 * Sorts the integers of a checkpoint into those that a target holds as they are and those that it cannot: NPUs have no zero
 * points in weights, no float scales inside a channel, and LiteRT no -128.
 */
export function fitWeights(taken: ReadonlyMap<string, TakenWeight>, format: NumberFormat): FittedWeights {
  const fitted = new Map<string, FittedWeight>();
  const misfits = new Map<string, string>();
  for (const [name, { exact, why, format: stored }] of taken) {
    const reason = exact ? misfit(exact.integers, exact.encoding, format) : why!;
    if (reason !== undefined) misfits.set(name, reason);
    else fitted.set(name, { encoding: exact!.encoding, values: exact!.integers, format: stored });
  }
  return { fitted, misfits };
}

function misfit(integers: Tensor, { dtype, block, zeroPoint }: Encoding, format: NumberFormat): string | undefined {
  if (format.name === 'onnx') return undefined;
  if (zeroPoint) return 'its integers have zero points, the weights of the target have none';
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
  return { bits: dtype.endsWith('4') ? 4 : 8, block: block as WeightForm['block'] };
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
