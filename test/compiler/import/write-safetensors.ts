/** The bytes of a safetensors file with any header, true or lying. */
export function encodeSafetensors(header: unknown, data: Uint8Array = new Uint8Array(0), length?: bigint): Uint8Array {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length ?? BigInt(json.length));
  return Buffer.concat([prefix, json, data]);
}

/** A header entry. */
export function entry(dtype: string, shape: unknown, begin: number, end: number) {
  return { dtype, shape, data_offsets: [begin, end] };
}
