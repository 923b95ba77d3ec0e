import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import { FileSource } from '../../../compiler/ir/tensor.ts';
import { MemorySource, SourceBytes } from '../../../targets/tflite/byte-source.ts';
import { readFlatBuffer } from '../../../targets/tflite/flatbuffer-reader.ts';
import type { TfliteModel } from '../../../targets/tflite/model.ts';
import { readTflite } from '../../../targets/tflite/read.ts';
import type { BufferBytes, StreamedBytes } from '../../../targets/tflite/schema.ts';
import { BuiltinOperator } from '../../../targets/tflite/schema-enums.ts';
import { encodeTflite, planTflite, writeTflite } from '../../../targets/tflite/write.ts';
import { twoSignatures } from './tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'npuc-tflite-'));
afterAll(() => rmSync(folder, { recursive: true }));

function bytesOf(bytes: BufferBytes | undefined): Uint8Array | undefined {
  if (!bytes || bytes instanceof Uint8Array) return bytes;
  if (bytes instanceof SourceBytes) return bytes.read();
  throw new Error('a streamed buffer');
}

function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    if (error instanceof NpucError) return error.code;
    throw error;
  }
  return 'no error';
}

/** A buffer of `byteLength` zeros that never is in memory as a whole. */
function zeros(byteLength: number): StreamedBytes {
  const chunk = new Uint8Array(1 << 20);
  return {
    byteLength,
    write(sink) {
      for (let done = 0; done < byteLength; done += chunk.length) {
        sink(chunk.subarray(0, Math.min(chunk.length, byteLength - done)));
      }
    },
  };
}

describe('writeTflite', () => {
  it('gives back what it was given, in both forms', () => {
    for (const kind of ['f32', 'a16w8', 'a16w4', 'a16w8-io'] as const) {
      for (const externalBuffers of [false, true]) {
        const model = twoSignatures(kind);
        const read = readTflite(encodeTflite(model, { externalBuffers }));
        expect(read.buffers.map(bytesOf)).toEqual(model.buffers);
        expect(read.signatures).toEqual(model.signatures);
        expect(read.metadata).toEqual(model.metadata);
        read.subgraphs.forEach((graph, g) => {
          const given = model.subgraphs[g]!;
          expect(graph.name).toBe(given.name);
          expect(graph.inputs).toEqual(given.inputs);
          graph.tensors.forEach((tensor, t) => {
            const { quantization, ...rest } = tensor;
            const { quantization: givenQuantization, ...givenRest } = given.tensors[t]!;
            expect(rest).toEqual({ ...givenRest, hasRank: true, isVariable: false });
            expect(Array.from(quantization?.scale ?? [])).toEqual(Array.from(givenQuantization?.scale ?? []));
            expect(Array.from(quantization?.zeroPoint ?? [])).toEqual(Array.from(givenQuantization?.zeroPoint ?? []));
          });
          graph.operators.forEach((operator, o) => {
            const { options, ...rest } = operator;
            const { options: givenOptions, ...givenRest } = given.operators[o]!;
            expect(rest).toEqual(givenRest);
            expect(options).toMatchObject(givenOptions!);
          });
        });
      }
    }
  });

  it('writes the same bytes for the same model, to memory and to a file', () => {
    for (const externalBuffers of [false, true]) {
      const bytes = encodeTflite(twoSignatures('a16w4'), { externalBuffers });
      expect(encodeTflite(twoSignatures('a16w4'), { externalBuffers })).toEqual(bytes);
      const path = join(folder, `same-${externalBuffers}.tflite`);
      const written = writeTflite(path, twoSignatures('a16w4'), { externalBuffers });
      expect(new Uint8Array(readFileSync(path))).toEqual(bytes);
      expect(written.byteLength).toBe(bytes.byteLength);
      expect(planTflite(twoSignatures('a16w4'), { externalBuffers })).toEqual({
        byteLength: bytes.byteLength,
        externalBuffers,
      });
    }
    const digest = writeTflite(join(folder, 'digest.tflite'), twoSignatures('f32')).sha256;
    expect(digest).toMatch(/^[0-9a-f]{64}$/);
    expect(writeTflite(join(folder, 'again.tflite'), twoSignatures('f32')).sha256).toBe(digest);
  });

  it('shares operator codes, keeps the old code field, aligns data to 16 bytes', () => {
    const model = twoSignatures('a16w8');
    model.subgraphs[0]!.operators.push({
      code: BuiltinOperator.GELU,
      version: 1,
      inputs: [model.subgraphs[0]!.outputs[0]!],
      outputs: [model.subgraphs[0]!.outputs[0]!],
      options: { kind: 'GeluOptions', approximate: true },
    });
    for (const externalBuffers of [false, true]) {
      const bytes = encodeTflite(model, { externalBuffers });
      const raw = readFlatBuffer(new MemorySource(bytes), 'Model');
      expect(raw.operatorCodes).toEqual([
        { builtinCode: 114, deprecatedBuiltinCode: 114, version: 2 },
        { builtinCode: 9, deprecatedBuiltinCode: 9, version: 9 },
        { builtinCode: 6, deprecatedBuiltinCode: 6, version: 3 },
        { builtinCode: 150, deprecatedBuiltinCode: 127, version: 1 },
      ]);
      raw.buffers!.forEach((buffer, i) => {
        const given = model.buffers[i] as Uint8Array | undefined;
        if (!given) {
          expect(buffer).toEqual({ offset: 0n, size: 0n });
          return;
        }
        const isMetadata = i === model.metadata[0]!.buffer;
        // The bytes are found where the file says, on a 16-byte boundary.
        const at = externalBuffers && !isMetadata ? Number(buffer.offset) : indexOf(bytes, given);
        expect(at % 16).toBe(0);
        expect(bytes.slice(at, at + given.byteLength)).toEqual(given);
        if (externalBuffers && !isMetadata) {
          expect(buffer.data).toBeUndefined();
          expect(Number(buffer.size)).toBe(given.byteLength);
        } else {
          expect(buffer.offset).toBe(0n);
        }
      });
    }
  });

  it('moves buffers out of the FlatBuffer above 1.5 GB and refuses what it cannot hold', () => {
    const model = (bytes: number): TfliteModel => {
      const tiny = twoSignatures('f32');
      tiny.buffers.push(zeros(bytes));
      return tiny;
    };
    expect(planTflite(model(1.4e9)).externalBuffers).toBe(false);
    expect(planTflite(model(1.6e9)).externalBuffers).toBe(true);
    expect(planTflite(model(2 ** 40)).byteLength).toBeGreaterThan(2 ** 40);
    expect(codeOf(() => planTflite(model(2 ** 31), { externalBuffers: false }))).toBe('TF103');
  });

  it('streams buffers: 256 MB pass through a few, and reading them back reads none of them', () => {
    const size = 1 << 28;
    for (const externalBuffers of [false, true]) {
      const model = twoSignatures('f32');
      model.buffers.push(zeros(size));
      const path = join(folder, `large-${externalBuffers}.tflite`);
      const before = process.memoryUsage().rss;
      writeTflite(path, model, { externalBuffers });
      expect(process.memoryUsage().rss - before).toBeLessThan(100e6);
      const file = new FileSource(path);
      let bytesRead = 0;
      const counting = {
        size: file.size,
        read(offset: number, length: number) {
          bytesRead += length;
          return file.read(offset, length);
        },
      };
      const read = readTflite(counting, path);
      expect(bytesRead).toBeLessThan(300_000);
      const last = read.buffers.at(-1) as SourceBytes;
      expect(last.byteLength).toBe(size);
      expect(last.read(size - 16)).toEqual(new Uint8Array(16));
      file.close();
      rmSync(path);
    }
  });

  it('tells a constant of 0 bytes from no constant', () => {
    for (const externalBuffers of [false, true]) {
      const model = twoSignatures('f32');
      model.buffers.push(new Uint8Array(0), undefined);
      const read = readTflite(encodeTflite(model, { externalBuffers })).buffers;
      expect(read.slice(-2).map(bytesOf)).toEqual([new Uint8Array(0), undefined]);
    }
  });

  it('leaves nothing behind when it fails', () => {
    const here = mkdtempSync(join(folder, 'fails-'));
    const lying = twoSignatures('f32');
    lying.buffers.push({ byteLength: 10, write: (sink) => sink(new Uint8Array(9)) });
    expect(codeOf(() => writeTflite(join(here, 'a.tflite'), lying))).toBe('TF103');
    lying.buffers[lying.buffers.length - 1] = { byteLength: 10, write: (sink) => sink(new Uint8Array(11)) };
    expect(codeOf(() => writeTflite(join(here, 'a.tflite'), lying))).toBe('TF103');
    lying.buffers[lying.buffers.length - 1] = {
      byteLength: 10,
      write: () => {
        throw new NpucError('IO003', { message: 'the checkpoint ended' });
      },
    };
    expect(codeOf(() => writeTflite(join(here, 'a.tflite'), lying))).toBe('IO003');
    expect(readdirSync(here)).toEqual([]);
    expect(codeOf(() => writeTflite(join(here, 'missing', 'a.tflite'), twoSignatures('f32')))).toBe('IO002');
  });

  it('refuses models that break a promise', () => {
    const broken = (change: (model: TfliteModel) => void): string => {
      const model = twoSignatures('f32');
      change(model);
      return codeOf(() => encodeTflite(model));
    };
    const graph = (model: TfliteModel) => model.subgraphs[0]!;
    expect(broken(() => {})).toBe('no error');
    // Names and signatures.
    expect(broken((m) => (graph(m).tensors[1]!.name = graph(m).tensors[0]!.name))).toBe('TF101');
    expect(broken((m) => (m.subgraphs[1]!.tensors[0]!.name = graph(m).tensors[0]!.name))).toBe('TF101');
    expect(broken((m) => (m.signatures[0]!.outputs = []))).toBe('TF102');
    expect(broken((m) => (m.signatures[0]!.inputs = [{ name: 'x', tensor: 1 }]))).toBe('TF102');
    expect(broken((m) => (m.signatures[1]!.key = m.signatures[0]!.key))).toBe('TF102');
    // Indices and values.
    expect(broken((m) => (m.buffers[0] = new Uint8Array(1)))).toBe('TF103');
    expect(broken((m) => (m.subgraphs = []))).toBe('TF103');
    expect(broken((m) => (graph(m).tensors[0]!.buffer = 99))).toBe('TF103');
    expect(broken((m) => (graph(m).operators[0]!.inputs = [0, 99]))).toBe('TF103');
    expect(broken((m) => (graph(m).operators[0]!.inputs = [0, -2]))).toBe('TF103');
    expect(broken((m) => (m.metadata[0]!.buffer = -1))).toBe('TF103');
    expect(broken((m) => (m.signatures[0]!.subgraph = 2))).toBe('TF103');
    expect(broken((m) => (graph(m).tensors[0]!.shape = [1.5]))).toBe('TF103');
    expect(broken((m) => (graph(m).tensors[0]!.shape = [2 ** 31]))).toBe('TF103');
    expect(broken((m) => (graph(m).operators[0]!.code = BuiltinOperator.CUSTOM))).toBe('TF103');
    expect(broken((m) => (graph(m).tensors[0]!.quantization = { scale: [1, 1], zeroPoint: [0, 0, 0] }))).toBe('TF103');
    expect(broken((m) => (graph(m).tensors[0]!.quantization = { scale: [1], zeroPoint: [0.5] }))).toBe('TF103');
    // What a vendor plugin compiled.
    const dispatch = { code: BuiltinOperator.CUSTOM, customCode: 'DISPATCH_OP', version: 1, inputs: [0], outputs: [3] };
    expect(broken((m) => (graph(m).operators = [dispatch]))).toBe('TF104');
    // A foreign file keeps its names and signatures, not its contradictions.
    const foreign = twoSignatures('f32');
    foreign.signatures[0]!.outputs = [];
    graph(foreign).tensors[1]!.name = graph(foreign).tensors[0]!.name;
    expect(readTflite(encodeTflite(foreign, { foreign: true })).signatures[0]!.outputs).toEqual([]);
  });

  it('keeps rare parts: sparsity, block-wise scales, variants, composites, large custom options, 64-bit values', () => {
    const model = twoSignatures('f32');
    const graph = model.subgraphs[0]!;
    Object.assign(graph.tensors[1]!, {
      sparsity: {
        traversalOrder: Int32Array.of(0, 1),
        blockMap: Int32Array.of(1),
        dimMetadata: [
          { format: 0, denseSize: 4 },
          {
            format: 1,
            denseSize: 0,
            arraySegments: { kind: 'Uint8Vector', values: Uint8Array.of(0, 255) },
            arrayIndices: { kind: 'Uint16Vector', values: Uint16Array.of(0, 65535) },
          },
        ],
      },
      quantization: {
        min: Float32Array.of(-1),
        max: Float32Array.of(1),
        quantizedDimension: 1,
        details: { kind: 'BlockwiseQuantization', scales: 2, zeroPoints: -1, blockSize: 32 },
      },
      variantTensors: [{ shape: Int32Array.of(2, 3), type: 9, hasRank: true }],
      shapeSignature: [-1, 8],
      externalBuffer: 5,
    });
    graph.operators.push(
      {
        code: BuiltinOperator.STABLEHLO_COMPOSITE,
        version: 1,
        inputs: [0, -1],
        outputs: [3],
        options2: {
          kind: 'StableHLOCompositeOptions',
          name: 'odml.rms_norm',
          decompositionSubgraphIndex: 1,
          compositeAttributes: Uint8Array.of(1, 2, 3),
          compositeAttributesFormat: 0,
          version: 1,
        },
        intermediates: [1],
        mutatingVariableInputs: Uint8Array.of(1, 0),
      },
      {
        code: BuiltinOperator.CUSTOM,
        customCode: 'Mine',
        version: 2,
        inputs: [0],
        outputs: [3],
        customOptions: Uint8Array.of(9, 8),
        largeCustomOptions: Uint8Array.of(5, 6, 7),
      },
      {
        code: BuiltinOperator.RANDOM_UNIFORM,
        version: 1,
        inputs: [0],
        outputs: [3],
        options: { kind: 'RandomOptions', seed: -(2n ** 63n), seed2: 2n ** 63n - 1n },
      },
    );
    const read = readTflite(encodeTflite(model)).subgraphs[0]!;
    const { sparsity, quantization, variantTensors, shapeSignature, externalBuffer } = read.tensors[1]!;
    const given = graph.tensors[1]!;
    expect(sparsity).toEqual(given.sparsity);
    expect(quantization).toEqual(given.quantization);
    expect(variantTensors).toEqual(given.variantTensors);
    expect({ shapeSignature, externalBuffer }).toEqual({ shapeSignature: [-1, 8], externalBuffer: 5 });
    expect(read.operators[1]).toEqual(graph.operators[1]);
    expect(read.operators[3]).toEqual(graph.operators[3]);
    const { largeCustomOptions, ...custom } = read.operators[2]!;
    const { largeCustomOptions: givenLarge, ...givenCustom } = graph.operators[2]!;
    expect(custom).toEqual(givenCustom);
    expect(bytesOf(largeCustomOptions!)).toEqual(givenLarge);
  });
});

function indexOf(bytes: Uint8Array, part: Uint8Array): number {
  return Buffer.from(bytes).indexOf(part);
}
