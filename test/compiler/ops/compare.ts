import type { DType } from '../../../compiler/ir/dtype.ts';
import type { TensorData } from '../../../compiler/ir/tensor.ts';
import { isBig, readReals } from '../../../compiler/ops/elements.ts';
import { isTensorData, type RuntimeValue } from '../../../compiler/ops/runtime-value.ts';

/** |got - want| <= absolute + relative * |want|. */
export interface Tolerance {
  readonly relative: number;
  readonly absolute: number;
}

/** The backend suite's own tolerance (1e-3); some of its references are printed with four digits, half types round at each step. */
export function toleranceOf(dtype: DType): Tolerance {
  if (dtype === 'f16') return { relative: 2e-3, absolute: 1e-4 };
  if (dtype === 'bf16') return { relative: 1e-2, absolute: 1e-4 };
  return { relative: 1e-3, absolute: 1e-5 };
}

/** What differs between two values, or undefined when nothing does. Integers and strings must be equal. */
export function difference(got: RuntimeValue, want: RuntimeValue, tolerance?: Tolerance): string | undefined {
  if (isTensorData(got) && isTensorData(want)) return tensorDifference(got, want, tolerance ?? toleranceOf(want.dtype));
  if (isTensorData(got) || isTensorData(want)) return 'one is a tensor, the other is none';
  if (got.kind !== want.kind) return `${got.kind} instead of ${want.kind}`;
  if (got.kind !== 'sequence' || want.kind !== 'sequence') return undefined;
  if (got.items.length !== want.items.length) return `${got.items.length} items instead of ${want.items.length}`;
  for (const [index, item] of got.items.entries()) {
    const found = difference(item, want.items[index]!, tolerance);
    if (found) return `item ${index}: ${found}`;
  }
  return undefined;
}

function tensorDifference(got: TensorData, want: TensorData, tolerance: Tolerance): string | undefined {
  if (got.dtype !== want.dtype) return `${got.dtype} instead of ${want.dtype}`;
  if (`${got.shape}` !== `${want.shape}`) return `shape [${got.shape}] instead of [${want.shape}]`;
  if (want.strings || isBig(want.dtype)) {
    const [a, b] = want.strings ? [got.strings!, want.strings] : [got.data, want.data];
    for (let i = 0; i < b.length; i++) if (a[i] !== b[i]) return `element ${i}: ${a[i]} instead of ${b[i]}`;
    return undefined;
  }
  const [a, b] = [readReals(got), readReals(want)];
  if (a.length !== b.length) return `${a.length} elements instead of ${b.length}`;
  const exact = !want.dtype.startsWith('f') && want.dtype !== 'bf16';
  for (let i = 0; i < b.length; i++) {
    const [x, y] = [a[i]!, b[i]!];
    if (x === y || (Number.isNaN(x) && Number.isNaN(y))) continue;
    if (exact || !(Math.abs(x - y) <= tolerance.absolute + tolerance.relative * Math.abs(y)))
      return `element ${i}: ${x} instead of ${y}`;
  }
  return undefined;
}
