import { readFileSync } from 'node:fs';
import { inflateRawSync } from 'node:zlib';
import type { DType, TypedArray } from '../ir/dtype.ts';
import { DTYPES } from '../ir/dtype.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';

const KINDS: Readonly<Record<string, DType>> = {
  '<f4': 'f32',
  '<f8': 'f64',
  '<i4': 'i32',
  '<i8': 'i64',
  '<u2': 'u16',
  '<i2': 'i16',
  '|u1': 'u8',
  '|i1': 'i8',
  '|b1': 'bool',
};

/** Reads a NumPy .npz: a zip of .npy files. Strings (`<U..`) come as `strings`. For the references of the tests. */
export function readNpz(path: string): Record<string, TensorData> {
  const zip = readFileSync(path);
  const end = zip.lastIndexOf(Buffer.from([0x50, 0x4b, 5, 6]));
  const count = zip.readUInt16LE(end + 10);
  let at = zip.readUInt32LE(end + 16);
  const out: Record<string, TensorData> = {};
  for (let i = 0; i < count; i++) {
    const method = zip.readUInt16LE(at + 10);
    const compressed = zip.readUInt32LE(at + 20);
    const [nameLength, extraLength, commentLength] = [28, 30, 32].map((offset) => zip.readUInt16LE(at + offset)) as [
      number,
      number,
      number,
    ];
    const local = zip.readUInt32LE(at + 42);
    const name = zip.toString('utf8', at + 46, at + 46 + nameLength);
    const start = local + 30 + zip.readUInt16LE(local + 26) + zip.readUInt16LE(local + 28);
    const raw = zip.subarray(start, start + compressed);
    out[name.replace(/\.npy$/, '')] = parseNpy(method === 8 ? inflateRawSync(raw) : raw);
    at += 46 + nameLength + extraLength + commentLength;
  }
  return out;
}

function parseNpy(bytes: Buffer): TensorData {
  const major = bytes[6]!;
  const headerLength = major === 1 ? bytes.readUInt16LE(8) : bytes.readUInt32LE(8);
  const start = (major === 1 ? 10 : 12) + headerLength;
  const header = bytes.toString('latin1', start - headerLength, start);
  const descr = /'descr': '([^']+)'/.exec(header)![1]!;
  const shape = [.../'shape': \(([^)]*)\)/.exec(header)![1]!.matchAll(/\d+/g)].map((match) => Number(match[0]));
  if (descr.startsWith('<U')) {
    const width = Number(descr.slice(2));
    const strings = Array.from({ length: elementCount(shape) }, (_, i) => {
      let text = '';
      for (let c = 0; c < width; c++) {
        const code = bytes.readUInt32LE(start + (i * width + c) * 4);
        if (code) text += String.fromCodePoint(code);
      }
      return text;
    });
    return { dtype: 'string', shape, data: new Uint8Array(0), strings };
  }
  const dtype = KINDS[descr];
  if (!dtype) throw new Error(`npy type ${descr}`);
  const body = new Uint8Array(bytes.subarray(start));
  const array = DTYPES[dtype].array;
  const width = DTYPES[dtype].bits / 8;
  return { dtype, shape, data: new array(body.buffer, 0, body.byteLength / width) as TypedArray };
}
