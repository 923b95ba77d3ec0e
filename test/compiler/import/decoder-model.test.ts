import { afterAll, expect, test } from 'vitest';
import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import { buildDecoder, readDecoderModel } from '../../../compiler/import/decoder-model.ts';
import { demo } from '../../cli/run-npuc.ts';

const checkpoint = await openCheckpoint(demo);
const model = readDecoderModel(checkpoint);
afterAll(() => checkpoint.close());

test('rows of the embedding are those of the table', () => {
  const { hiddenSize, vocabSize } = model.config;
  const table = checkpoint.tensors.get('model.embed_tokens.weight')!.toFloats();
  const ids = [0, 5, vocabSize - 1, 5];
  const expected = ids.flatMap((id) => [...table.subarray(id * hiddenSize, (id + 1) * hiddenSize)]);
  expect([...model.embed(ids)]).toEqual(expected);
});

test('a context beyond the positions must be allowed', () => {
  const { config, weights } = model;
  const refusal = expect.objectContaining({ code: 'IM411' });
  expect(() => buildDecoder(config, weights, config.maxPositions + 1)).toThrowError(refusal);
  expect(buildDecoder(config, weights, config.maxPositions).graphs.length).toBe(1);
  expect(buildDecoder(config, weights, config.maxPositions + 1, true).graphs.length).toBe(1);
});
