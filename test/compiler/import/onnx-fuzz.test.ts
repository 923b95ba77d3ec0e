import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import { ProtoWriter } from '../../../compiler/export/protobuf.ts';
import { decodeOnnx } from '../../../compiler/import/onnx.ts';
import { BytesSource, WireReader } from '../../../compiler/import/protobuf.ts';
import { hasMaterial, materialPath } from '../../material.ts';

const fixture = (name: string): Uint8Array =>
  readFileSync(fileURLToPath(new URL(`../../../fixtures/onnx/${name}`, import.meta.url)));

/** A damaged model gives a model or a coded error, soon, and takes no more memory than a small multiple of its bytes. */
function expectHarmless(bytes: Uint8Array): 'model' | 'error' {
  const before = process.memoryUsage().arrayBuffers;
  const start = performance.now();
  try {
    const module = decodeOnnx(bytes);
    for (const value of module.graph().constants) value.data!.read();
    return 'model';
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    expect(error.code).toMatch(/^(IO003|IM30\d)$/);
    return 'error';
  } finally {
    expect(performance.now() - start).toBeLessThan(2000);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 << 20);
  }
}

const SOURCES: readonly (readonly [string, Uint8Array, number])[] = [
  ['features.onnx', fixture('features.onnx'), 1500],
  ['typed-data.onnx', fixture('typed-data.onnx'), 600],
  ...(hasMaterial
    ? [['silero', readFileSync(materialPath('onnx/silero-vad/silero_vad_16k_op15.onnx')), 40] as const]
    : []),
];

describe.each(SOURCES)('a damaged %s', (_, bytes, runs) => {
  it('fails cleanly when it is cut short', () => {
    const outcomes = new Set<string>();
    fc.assert(
      fc.property(fc.integer({ min: 0, max: bytes.length - 1 }), (length) => {
        outcomes.add(expectHarmless(bytes.subarray(0, length)));
      }),
      { numRuns: runs },
    );
    expect(outcomes).toContain('error');
  });

  it('fails cleanly when bytes are wrong', () => {
    const flip = fc.record({ at: fc.nat(bytes.length - 1), to: fc.integer({ min: 0, max: 255 }) });
    const outcomes = new Set<string>();
    fc.assert(
      fc.property(fc.array(flip, { minLength: 1, maxLength: 8 }), (flips) => {
        const copy = Uint8Array.from(bytes);
        for (const { at, to } of flips) copy[at] = to;
        outcomes.add(expectHarmless(copy));
      }),
      { numRuns: runs },
    );
    expect(outcomes).toEqual(new Set(['error', 'model']));
  });
});

describe('hostile bytes', () => {
  it('are refused: any bytes at all', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        expect(expectHarmless(bytes)).toBe('error');
      }),
      { numRuns: 2000 },
    );
  });

  it('are refused: lengths beyond the file', () => {
    for (const length of [200, 2 ** 31, 2 ** 40, 2 ** 52]) {
      const writer = new ProtoWriter();
      // Field 7, the graph, claims more than there is.
      writer.int(7 * 8 + 2);
      writer.int(length);
      writer.bytes(new Uint8Array(8));
      expect(() => decodeOnnx(writer.toBytes())).toThrow(expect.objectContaining({ code: 'IO003' }));
    }
  });

  it('are refused: messages nested without end', () => {
    // Attribute 5 of node 1 of graph 6 of an attribute, and so on.
    let inner: Uint8Array = new Uint8Array(0);
    for (let depth = 0; depth < 399; depth++) {
      const writer = new ProtoWriter();
      writer.int((depth % 3 === 0 ? 6 : depth % 3 === 1 ? 5 : 1) * 8 + 2);
      writer.int(inner.length);
      writer.bytes(inner);
      inner = writer.toBytes();
    }
    const model = new ProtoWriter();
    model.int(7 * 8 + 2);
    model.int(inner.length);
    model.bytes(inner);
    expect(() => decodeOnnx(model.toBytes())).toThrow(expect.objectContaining({ code: 'IO003' }));
  });
});

describe('varints', () => {
  it('come back as they were written', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), (value) => {
        const writer = new ProtoWriter();
        writer.int(value);
        const read = new WireReader(new BytesSource(writer.toBytes())).int();
        expect(BigInt(read)).toBe(value);
        expect(typeof read).toBe(value > -(2n ** 53n) && value < 2n ** 53n ? 'number' : typeof read);
      }),
    );
  });

  it('agree between numbers and bigints', () => {
    fc.assert(
      fc.property(fc.maxSafeInteger(), (value) => {
        const [number, bigint] = [new ProtoWriter(), new ProtoWriter()];
        number.int(value);
        bigint.int(BigInt(value));
        expect(number.toBytes()).toEqual(bigint.toBytes());
      }),
    );
  });
});
