import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buildPlainDecoder } from '../../../calibration/decoder-statistics.ts';
import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import { type DecoderModel, readDecoderModel } from '../../../compiler/import/decoder-model.ts';
import { readNpz } from '../../../compiler/import/npz.ts';
import { toNumbers } from '../../../compiler/ir/tensor.ts';
import { inferShapes } from '../../../compiler/ops/infer-shapes.ts';
import { DecoderSession } from '../../../compiler/runtime/decoder-session.ts';
import { createReferenceRunner } from '../../../compiler/runtime/reference.ts';
import type { Runner } from '../../../compiler/runtime/runner.ts';
import { plainContract } from '../../../passes/io-contract.ts';
import { makeProtocol } from '../../../passes/protocol.ts';
import { hasMaterial, materialPath } from '../../material.ts';

const CACHE = 32;

describe.skipIf(!hasMaterial)('the reference engine runs stories260k', () => {
  let model: DecoderModel;
  beforeAll(async () => {
    model = readDecoderModel(await openCheckpoint(materialPath('stories260k', 'hf')));
  });
  afterAll(() => model.checkpoint.close());

  const open = (tokens: number): Runner => {
    const module = buildPlainDecoder(model.config, model.weights, tokens, CACHE);
    inferShapes(module);
    return createReferenceRunner(module.graph(), module.opsets);
  };

  test('with the logits of transformers, in a prefill chunk and single tokens', async () => {
    const reference = readNpz(materialPath('stories260k', 'hf_reference.npz'));
    const ids = toNumbers(reference.input_ids!);
    const logits = reference.logits!.data as Float32Array;
    const graphs = new Map([8, 1].map((tokens) => [tokens, open(tokens)]));
    const session = new DecoderSession({ protocol: makeProtocol(model.config, plainContract, CACHE), graphs });
    const rows = await session.feed(ids, 'all');
    expect(rows).toHaveLength(ids.length);
    let worst = 0;
    rows.forEach((row, i) => {
      row.forEach((value, j) => {
        worst = Math.max(worst, Math.abs(value - logits[i * row.length + j]!));
      });
    });
    expect(worst).toBeLessThan(1e-4);
  });

  test('and every value of the decoder has a fixed inferred shape', () => {
    const module = buildPlainDecoder(model.config, model.weights, 8, CACHE);
    const graph = module.graph();
    const built = new Map([...graph.values].map((value) => [value.name, value.type]));
    for (const value of graph.values) if (value.producer) value.type = undefined;
    inferShapes(module);
    for (const value of graph.values) {
      if (value.type?.kind !== 'tensor') throw new Error(`${value.name} has no inferred type`);
      expect(value.dims.every(Number.isInteger), value.name).toBe(true);
      if (built.get(value.name)) expect(value.type, value.name).toEqual(built.get(value.name));
    }
  });
});
