import { createHash } from 'node:crypto';
import { readdirSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { NpucError } from '../compiler/errors.ts';
import { readNpz } from '../compiler/import/npz.ts';
import { DTYPES, type DType, isFloat } from '../compiler/ir/dtype.ts';
import type { Graph } from '../compiler/ir/graph.ts';
import { elementCount, type TensorData } from '../compiler/ir/tensor.ts';
import { isInteger, newArray, readReals } from '../compiler/ops/elements.ts';
import { randomFeeds } from '../compiler/pass-values.ts';
import type { Tensors } from '../compiler/runtime/runner.ts';

/** An input of a frozen model. */
export interface SamplePort {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/** Inputs to run a model on. */
export interface Samples {
  readonly feeds: readonly Tensors[];
  /** SHA-256 over names, types, shapes and bytes of all feeds, in order. */
  readonly digest: string;
  /** Where they come from: file names, or how they were made. */
  readonly source: string;
  /** Made up, not read: ranges measured on them mean little. */
  readonly random: boolean;
}

/** What must be fed to a frozen graph. @throws XX001 when an input is no tensor of fixed shape */
export function samplePorts(graph: Graph): SamplePort[] {
  return graph.inputs.map((input) => ({ name: input.name, dtype: input.dtype, shape: input.dims }));
}

/**
 * Reads samples from a .npz file, or from every .npz file of a folder in the order of their names. Arrays are named like
 * the model's inputs, or `in_<input>`; others are left alone. An array holds one sample, or several: along its first axis,
 * when that is a multiple of the input's, or along one more axis in front. An input of which a file has one sample is the
 * same for all of that file. NumPy's default types are converted where that is exact enough to be meant: f64 and f16 to
 * f32, integers to another width when they fit.
 * @throws IO001, IO003 for files that cannot be read; QT120 naming file and input when an array is missing or does not fit
 */
export function readSamples(path: string, ports: readonly SamplePort[]): Samples {
  const files = listFiles(path);
  const feeds = files.flatMap((file) => splitFile(file, readNpz(file), ports));
  return { feeds, digest: digestOf(feeds), source: basename(path), random: false };
}

/**
 * Seeded random samples: floats uniform in -1..1, integers and booleans 0 or 1, the only indices that any table has.
 * What is measured on them says little about real inputs.
 * @throws RT011 for an input of strings
 */
export function randomSamples(graph: Graph, count: number, seed: number): Samples {
  const feeds = Array.from({ length: count }, (_, index) => randomFeeds(graph, { seed: seed * 1000 + index }));
  return { feeds, digest: digestOf(feeds), source: `${count} random samples, seed ${seed}`, random: true };
}

/** The .npz files of a path, sorted by name. */
function listFiles(path: string): string[] {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) throw new NpucError('IO001', { message: `there is no ${path}`, where: path });
  if (!stat.isDirectory()) return [path];
  const names = readdirSync(path).filter((name) => name.endsWith('.npz'));
  if (names.length === 0) throw new NpucError('QT120', { message: `${path} holds no .npz file`, where: path });
  return names.sort().map((name) => join(path, name));
}

function splitFile(
  file: string,
  arrays: Readonly<Record<string, TensorData>>,
  ports: readonly SamplePort[],
): Tensors[] {
  const columns = ports.map((port) => {
    const name = [port.name, `in_${port.name}`].find((candidate) => Object.hasOwn(arrays, candidate));
    if (name === undefined) {
      throw new NpucError('QT120', {
        message: `there is no array for the input ${port.name}`,
        where: file,
        hint: `name one ${port.name} or in_${port.name}; the file has ${Object.keys(arrays).join(', ') || 'no arrays'}`,
      });
    }
    return splitArray(convert(arrays[name]!, port, file), port, file);
  });
  const count = columns.reduce((most, column) => Math.max(most, column.length), 1);
  columns.forEach((column, i) => {
    if (column.length === count || column.length === 1) return;
    throw new NpucError('QT120', {
      message: `the input ${ports[i]!.name} has ${column.length} samples, another input has ${count}`,
      where: file,
    });
  });
  return Array.from({ length: count }, (_, sample) =>
    Object.fromEntries(columns.map((column, i) => [ports[i]!.name, column[column.length === 1 ? 0 : sample]!])),
  );
}

/** Cuts an array into samples of the input's shape. */
function splitArray(array: TensorData, port: SamplePort, file: string): TensorData[] {
  const { shape } = port;
  const got = array.shape;
  const extra = got.length - shape.length;
  const samples =
    extra === 0 && shape.length > 0 && sameDims(got.slice(1), shape.slice(1)) && shape[0]! > 0
      ? got[0]! / shape[0]!
      : extra === 0 && sameDims(got, shape)
        ? 1
        : extra === 1 && sameDims(got.slice(1), shape)
          ? got[0]!
          : 0;
  if (samples < 1 || !Number.isInteger(samples)) {
    throw new NpucError('QT120', {
      message: `the array for the input ${port.name} has the shape [${got}], the model takes [${shape}]`,
      where: file,
      hint: 'several samples lie along the first axis',
    });
  }
  const size = elementCount(shape);
  return Array.from({ length: samples }, (_, i) => ({
    dtype: array.dtype,
    shape,
    data: array.data.slice(i * size, (i + 1) * size),
  }));
}

function sameDims(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((dim, axis) => dim === b[axis]);
}

/** An array in the input's element type. */
function convert(array: TensorData, { name, dtype }: SamplePort, file: string): TensorData {
  if (array.dtype === dtype) return array;
  const misfit = (why: string): NpucError =>
    new NpucError('QT120', { message: `the array for the input ${name} ${why}`, where: file });
  const { shape } = array;
  if (dtype === 'f32' && isFloat(array.dtype)) return { dtype, shape, data: Float32Array.from(readReals(array)) };
  if (!isInteger(dtype) || !isInteger(array.dtype)) throw misfit(`is ${array.dtype}, the model takes ${dtype}`);
  const numbers = Array.from(array.data as BigInt64Array, BigInt);
  const { bits } = DTYPES[dtype];
  const fits = dtype.startsWith('u') ? BigInt.asUintN : BigInt.asIntN;
  const outside = numbers.find((number) => fits(bits, number) !== number);
  if (outside !== undefined) throw misfit(`holds ${outside}, which is no ${dtype}`);
  const data = newArray(dtype, numbers.length);
  const wide = data instanceof BigInt64Array || data instanceof BigUint64Array;
  numbers.forEach((number, i) => {
    if (wide) data[i] = number;
    else data[i] = Number(number);
  });
  return { dtype, shape, data };
}

function digestOf(feeds: readonly Tensors[]): string {
  const hash = createHash('sha256');
  for (const feed of feeds) {
    for (const name of Object.keys(feed).sort()) {
      const { dtype, shape, data } = feed[name]!;
      hash.update(`${name}\0${dtype}[${shape}]\0`);
      hash.update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    }
  }
  return hash.digest('hex');
}
