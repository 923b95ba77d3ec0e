/** A tensor of a GGUF file: dims innermost first, as the format has them. */
export interface GgufTensorSpec {
  name: string;
  dims: readonly (number | bigint)[];
  type: number;
  data: Uint8Array;
  /** Lies about the place; by default tensors follow each other, aligned. */
  offset?: number;
}

export interface GgufSpec {
  version?: number;
  /** `[key, type number, value]`; a value of type 9 is `[element type, elements]`. */
  metadata?: readonly (readonly [string, number, unknown])[];
  tensors?: readonly GgufTensorSpec[];
  tensorCount?: bigint;
  metadataCount?: bigint;
  /** A power of two, 32 by default; the metadata must say the same. */
  alignment?: number;
}

export const [U32, I32, F32, BOOL, STRING, ARRAY, U64] = [4, 5, 6, 7, 8, 9, 10];

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}

function u64(value: number | bigint): Buffer {
  const buffer = Buffer.alloc(8);
  buffer.writeBigUInt64LE(BigInt(value));
  return buffer;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}

function encodeValue(type: number, value: unknown): Buffer {
  if (type === STRING) return text(value as string);
  if (type === U64) return u64(value as bigint);
  if (type === BOOL) return Buffer.from([value ? 1 : 0]);
  if (type === ARRAY) {
    const [element, items] = value as [number, unknown[]];
    return Buffer.concat([u32(element), u64(items.length), ...items.map((item) => encodeValue(element, item))]);
  }
  const buffer = Buffer.alloc(type === 0 || type === 1 ? 1 : type === 2 || type === 3 ? 2 : type >= 10 ? 8 : 4);
  if (type === 0) buffer.writeUInt8(value as number);
  else if (type === 1) buffer.writeInt8(value as number);
  else if (type === 2) buffer.writeUInt16LE(value as number);
  else if (type === 3) buffer.writeInt16LE(value as number);
  else if (type === I32) buffer.writeInt32LE(value as number);
  else if (type === F32) buffer.writeFloatLE(value as number);
  else if (type === 11) buffer.writeBigInt64LE(value as bigint);
  else if (type === 12) buffer.writeDoubleLE(value as number);
  else buffer.writeUInt32LE(value as number);
  return buffer;
}

/** The bytes of a GGUF file, true or lying. */
export function encodeGguf(spec: GgufSpec): Uint8Array {
  const { version = 3, metadata = [], tensors = [], alignment = 32 } = spec;
  const parts: Buffer[] = [
    Buffer.from('GGUF'),
    u32(version),
    u64(spec.tensorCount ?? tensors.length),
    u64(spec.metadataCount ?? metadata.length),
  ];
  for (const [key, type, value] of metadata) parts.push(text(key), u32(type), encodeValue(type, value));
  let offset = 0;
  const data: Buffer[] = [];
  for (const tensor of tensors) {
    parts.push(text(tensor.name), u32(tensor.dims.length), ...tensor.dims.map(u64), u32(tensor.type));
    parts.push(u64(tensor.offset ?? offset));
    const padding = -tensor.data.length & (alignment - 1);
    data.push(Buffer.from(tensor.data), Buffer.alloc(padding));
    offset += tensor.data.length + padding;
  }
  const header = Buffer.concat(parts);
  return Buffer.concat([header, Buffer.alloc(-header.length & (alignment - 1)), ...data]);
}
