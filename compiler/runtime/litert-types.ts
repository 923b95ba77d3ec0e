import type { DType } from '../ir/dtype.ts';

/** LiteRT's ElementType codes (litert_model_types.h) of the types that can be inputs and outputs. */
export const ELEMENT_TYPES: Readonly<Partial<Record<DType, number>>> = {
  f32: 1,
  i32: 2,
  u8: 3,
  i64: 4,
  bool: 6,
  i16: 7,
  i8: 9,
  f16: 10,
  f64: 11,
  u64: 13,
  u32: 16,
  u16: 17,
};
