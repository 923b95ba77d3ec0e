import { readdirSync, readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NpucError } from '../../../compiler/errors.ts';
import { SourceBytes } from '../../../targets/tflite/byte-source.ts';
import type { TfliteOperator } from '../../../targets/tflite/model.ts';
import { readTflite } from '../../../targets/tflite/read.ts';
import { BuiltinOperator } from '../../../targets/tflite/schema-enums.ts';
import { encodeTflite } from '../../../targets/tflite/write.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { twoSignatures } from './tiny-models.ts';

const GOOD = (['f32', 'a16w4'] as const).flatMap((kind) =>
  [false, true].map((externalBuffers) => encodeTflite(twoSignatures(kind), { externalBuffers })),
);

/** The code of the error, or `read`. Anything but a coded error fails the test. Buffers that were read must be there. */
function outcome(bytes: Uint8Array): string {
  try {
    const model = readTflite(bytes, 'fuzzed.tflite');
    for (const buffer of model.buffers) {
      if (buffer instanceof SourceBytes) expect(buffer.read().byteLength).toBe(buffer.byteLength);
    }
    try {
      encodeTflite(model, { foreign: true });
    } catch (error) {
      // A file can be well formed and still say nonsense that we would not write.
      if (!(error instanceof NpucError)) throw error;
      expect(error.code).toMatch(/^TF10[34]$/);
    }
    return 'read';
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    expect(error.where).toBe('fuzzed.tflite');
    expect(error.hint).toBeTruthy();
    return error.code;
  }
}

function u32(bytes: Uint8Array, position: number): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset + position, 4);
}

describe('a damaged TFLite file', () => {
  it('that is cut short gives IO003', () => {
    for (const good of GOOD) {
      for (let length = 0; length < good.byteLength; length++) expect(outcome(good.slice(0, length))).toBe('IO003');
      expect(outcome(good)).toBe('read');
    }
  });

  it('with changed bytes gives a coded error or is read', () => {
    const seen = new Set<string>();
    const change = fc.tuple(fc.nat(), fc.nat({ max: 255 }));
    fc.assert(
      fc.property(fc.constantFrom(...GOOD), fc.array(change, { minLength: 1, maxLength: 6 }), (good, changes) => {
        const bytes = good.slice();
        for (const [at, value] of changes) bytes[at % bytes.byteLength] = value;
        seen.add(outcome(bytes));
      }),
      { numRuns: 3000, seed: 1 },
    );
    expect([...seen].sort()).toEqual(['IO003', 'TF105', 'read']);
  });

  it('with changed words gives a coded error or is read', () => {
    const word = fc.oneof(fc.nat({ max: 64 }), fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.constant(2 ** 32 - 1));
    fc.assert(
      fc.property(
        fc.constantFrom(...GOOD),
        fc.array(fc.tuple(fc.nat(), word), { minLength: 1, maxLength: 4 }),
        (good, words) => {
          const bytes = good.slice();
          for (const [at, value] of words) u32(bytes, (at * 4) % (bytes.byteLength - 3)).setUint32(0, value, true);
          outcome(bytes);
        },
      ),
      { numRuns: 3000, seed: 2 },
    );
  });

  it('of random bytes behind a good identifier gives a coded error or is read', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 8, maxLength: 400 }), (noise) => {
        const bytes = noise.slice();
        bytes.set(
          [...'TFL3'].map((c) => c.charCodeAt(0)),
          4,
        );
        bytes.set([bytes[0]! % 64, 0, 0, 0], 0);
        outcome(bytes);
      }),
      { numRuns: 3000, seed: 3 },
    );
  });

  it('whose tables overlap without end is refused, fast and in little memory', () => {
    // 5,000 references to one subgraph that has 5,000 references to one tensor: 25 million tensors in 40 kB.
    const count = 5000;
    const [modelTable, subgraphs] = [28, 36];
    const subgraph = subgraphs + 4 + count * 4;
    const tensors = subgraph + 8;
    const tensor = tensors + 4 + count * 4;
    const view = new DataView(new ArrayBuffer(tensor + 4));
    const vtable = (at: number, ...words: number[]): void =>
      words.forEach((word, i) => view.setUint16(at + i * 2, word, true));
    const table = (at: number, itsVtable: number): void => view.setInt32(at, at - itsVtable, true);
    const reference = (at: number, target: number): void => view.setUint32(at, target - at, true);
    reference(0, modelTable);
    view.setUint32(4, 0x334c4654, true);
    vtable(8, 10, 8, 0, 0, 4); // slot 2: subgraphs
    vtable(18, 4, 4); // no slots
    vtable(22, 6, 8, 4); // slot 0: tensors
    table(modelTable, 8);
    reference(modelTable + 4, subgraphs);
    table(subgraph, 22);
    reference(subgraph + 4, tensors);
    table(tensor, 18);
    view.setUint32(subgraphs, count, true);
    view.setUint32(tensors, count, true);
    for (let i = 1; i <= count; i++) {
      reference(subgraphs + i * 4, subgraph);
      reference(tensors + i * 4, tensor);
    }
    const start = performance.now();
    expect(() => readTflite(new Uint8Array(view.buffer))).toThrow(/its tables overlap/);
    expect(performance.now() - start).toBeLessThan(2000);
  });

  it.skipIf(!hasMaterial)('made from a real one by 2,000 mutations gives a coded error or is read', () => {
    const folder = 'tflite/ai-edge-quantizer';
    const files = readdirSync(materialPath(folder))
      .filter((name) => name.endsWith('.tflite'))
      .map((name) => new Uint8Array(readFileSync(materialPath(folder, name))))
      .filter((bytes) => bytes.byteLength < 20_000);
    const seen = new Map<string, number>();
    const place = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    const word = fc.oneof(fc.nat({ max: 64 }), fc.constantFrom(0x7fffffff, 0x80000000, 0xffffffff), fc.nat());
    fc.assert(
      fc.property(
        fc.constantFrom(...files),
        fc.array(fc.tuple(place, word), { minLength: 1, maxLength: 3 }),
        (good, words) => {
          const bytes = good.slice();
          // Most tables lie in the first kilobytes.
          for (const [at, value] of words) {
            const position = Math.floor(at * Math.min(4096, bytes.byteLength - 4)) & ~3;
            u32(bytes, position).setUint32(0, value, true);
          }
          const result = outcome(bytes);
          seen.set(result, (seen.get(result) ?? 0) + 1);
        },
      ),
      { numRuns: 2000, seed: 4 },
    );
    expect(seen.get('IO003')).toBeGreaterThan(200);
    expect(seen.get('read')).toBeGreaterThan(10);
  });

  it('whose subgraphs call each other in a circle is refused', () => {
    const model = twoSignatures('f32');
    const call = (subgraph: number): TfliteOperator => ({
      code: BuiltinOperator.STABLEHLO_COMPOSITE,
      version: 1,
      inputs: [],
      outputs: [],
      options2: { kind: 'StableHLOCompositeOptions', name: 'again', decompositionSubgraphIndex: subgraph },
    });
    model.subgraphs[0]!.operators.push(call(1));
    const fine = encodeTflite(model, { foreign: true });
    expect(outcome(fine)).toBe('read');
    model.subgraphs[1]!.operators.push(call(0));
    expect(() => encodeTflite(model, { foreign: true })).toThrow(/the subgraphs 0, 1 call each other in a circle/);
  });

  it('whose operator reads what is made later is refused', () => {
    const model = twoSignatures('f32');
    const [graph] = model.subgraphs;
    const [operator] = graph!.operators;
    const again = graph!.tensors.push({ ...graph!.tensors[operator!.outputs[0]!]!, name: 'later' }) - 1;
    graph!.operators.unshift({
      ...operator!,
      outputs: [again],
      inputs: [operator!.outputs[0]!, ...operator!.inputs.slice(1)],
    });
    expect(() => encodeTflite(model, { foreign: true })).toThrow(/FULLY_CONNECTED reads .*y before it is made/);
  });

  it('with an operator that the schema does not know is refused by its code', () => {
    const bytes = encodeTflite(twoSignatures('f32'));
    const model = readTflite(bytes);
    model.subgraphs[0]!.operators[0]!.code = 999;
    const unknown = encodeTflite(model, { foreign: true });
    expect(outcome(unknown)).toBe('TF105');
    expect(() => readTflite(unknown)).toThrow(/an operator has the code 999/);
  });

  it('whose tensor names a buffer that is not there is refused', () => {
    const model = twoSignatures('f32');
    model.subgraphs[0]!.tensors[1]!.buffer = 77;
    expect(() => encodeTflite(model, { foreign: true })).toThrow(/the buffer of tensor .* is 77, of \d/);
  });

  it('names what is wrong', () => {
    const message = (bytes: Uint8Array): string => {
      try {
        readTflite(bytes);
      } catch (error) {
        return (error as Error).message;
      }
      return 'read';
    };
    expect(message(new Uint8Array(0))).toBe('0 bytes are too few for a FlatBuffer');
    expect(message(new TextEncoder().encode('{"not": "a model"}'))).toBe('the file identifier is "t\\": ", not TFL3');
    const external = encodeTflite(twoSignatures('f32'), { externalBuffers: true });
    expect(message(external.slice(0, external.byteLength - 1))).toMatch(
      /^buffer \d is bytes \d+\.\.\d+ of a file of \d+$/,
    );
  });
});
