/**
 * The header of a .litertlm file as data, spelled as in schema.ts. Source: the header schema of LiteRT-LM 0.18.1 (format
 * 1.7.0), checked against what its own builder writes and its own reader reads.
 */
export const BUNDLE_TABLES = {
  BundlePair: { key: 'string', value: 'union BundleValue' },
  BundleSystem: { entries: 'BundlePair[]' },
  BundleSection: { items: 'BundlePair[]', beginOffset: 'u64', endOffset: 'u64', dataType: 'u8' },
  BundleSections: { objects: 'BundleSection[]' },
  BundleHeader: { system: 'BundleSystem', sections: 'BundleSections' },
} as const;

/** What a key can have, in the order of the union's codes. */
export const BUNDLE_VALUES = {
  BundleU8: { value: 'u8' },
  BundleI8: { value: 'i8' },
  BundleU16: { value: 'u16' },
  BundleI16: { value: 'i16' },
  BundleU32: { value: 'u32' },
  BundleI32: { value: 'i32' },
  BundleF32: { value: 'f32' },
  BundleBool: { value: 'bool' },
  BundleText: { value: 'string' },
  BundleU64: { value: 'u64' },
  BundleI64: { value: 'i64' },
  // 64-bit floats are read as their bits: no key that is known has one.
  BundleF64: { value: 'u64' },
} as const;
