import { crc32, deflateRawSync } from 'node:zlib';
import type { TensorData } from '../../../compiler/ir/tensor.ts';

const KINDS: Readonly<Record<string, string>> = {
  f16: '<f2',
  f32: '<f4',
  f64: '<f8',
  i8: '|i1',
  u8: '|u1',
  i16: '<i2',
  u16: '<u2',
  i32: '<i4',
  i64: '<i8',
  bool: '|b1',
};

/** A .npy array as NumPy's version 1 of the format. */
export function encodeNpy(tensor: TensorData, overrides: { descr?: string; order?: 'True' | 'False' } = {}): Buffer {
  const { descr = KINDS[tensor.dtype]!, order = 'False' } = overrides;
  const shape = tensor.shape.map((dim) => `${dim},`).join(' ');
  const text = `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': (${shape}), }\n`;
  const head = Buffer.from(`\x93NUMPY\x01\x00\x00\x00${text}`, 'latin1');
  head.writeUInt16LE(text.length, 8);
  return Buffer.concat([head, Buffer.from(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength)]);
}

/** A zip of .npy files as np.savez writes it, or deflated as np.savez_compressed does. */
export function encodeNpz(arrays: Readonly<Record<string, TensorData | Buffer>>, deflate = false): Buffer {
  const locals: Buffer[] = [];
  const entries: Buffer[] = [];
  let at = 0;
  for (const [key, array] of Object.entries(arrays)) {
    const bytes = Buffer.isBuffer(array) ? array : encodeNpy(array);
    const stored = deflate ? deflateRawSync(bytes) : bytes;
    const name = Buffer.from(`${key}.npy`);
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt16LE(deflate ? 8 : 0, 4);
    common.writeUInt32LE(crc32(bytes), 10);
    common.writeUInt32LE(stored.length, 14);
    common.writeUInt32LE(bytes.length, 18);
    common.writeUInt16LE(name.length, 22);
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), common, name, stored]);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(at, 10);
    entries.push(Buffer.concat([Buffer.from('PK\x01\x02\x14\x00'), common, tail, name]));
    locals.push(local);
    at += local.length;
  }
  const directory = Buffer.concat(entries);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(directory.length, 12);
  end.writeUInt32LE(at, 16);
  return Buffer.concat([...locals, directory, end]);
}

/** A float tensor of a shape, its elements made from their place. */
export function floats(shape: readonly number[], at: (index: number) => number): TensorData {
  const count = shape.reduce((product, dim) => product * dim, 1);
  return { dtype: 'f32', shape, data: Float32Array.from({ length: count }, (_, i) => at(i)) };
}
