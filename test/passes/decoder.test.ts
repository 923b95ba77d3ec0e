import { describe, expect, it } from 'vitest';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { buildDecoder, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { verify } from '../../compiler/ir/verify.ts';
import { runPasses } from '../../compiler/pass.ts';
import { decomposeRmsNorm } from '../../passes/decompose-rms-norm.ts';
import { decomposeRope } from '../../passes/decompose-rope.ts';
import { foldAttentionScale } from '../../passes/fold-attention-scale.ts';
import { freezeShapes } from '../../passes/freeze-shapes.ts';
import { fuseRmsNorm } from '../../passes/fuse-rms-norm.ts';
import { simplify } from '../../passes/pipelines.ts';
import { hasMaterial, materialPath } from '../material.ts';

async function decoder(): Promise<Module> {
  const checkpoint = await openCheckpoint(materialPath('stories260k', 'hf'));
  const { config, weights } = readDecoderModel(checkpoint);
  return buildDecoder(config, weights, 16);
}

function count(module: Module, op: string): number {
  return module.graph().nodes.filter((node) => node.op === op).length;
}

/** Past and new tokens of the frozen graph. */
const LENGTHS = { past: 5, tokens: 3 };

describe.skipIf(!hasMaterial)('stories260k', () => {
  it('freezes by its symbols, and computes the same frozen', { timeout: 60_000 }, async () => {
    const module = await decoder();
    const { remarks } = runPasses(module, [freezeShapes({ bindings: LENGTHS })], { verifyValues: true });
    expect(remarks.filter(({ text }) => text.includes('not compared'))).toEqual([]);
    verify(module, 'frozen');
    expect(module.graph().find('logits')!.dims).toEqual([1, 3, 512]);
  });

  it('computes the same with norms and rotary embedding written out, and norms recognised again', {
    timeout: 120_000,
  }, async () => {
    const module = await decoder();
    runPasses(module, [freezeShapes({ bindings: LENGTHS }), ...simplify]);
    const norms = count(module, 'RMSNormalization');
    expect(norms).toBe(11);
    const options = { verifyValues: true, untilStable: true } as const;
    runPasses(module, [decomposeRmsNorm, decomposeRope], options);
    expect([count(module, 'RMSNormalization'), count(module, 'RotaryEmbedding')]).toEqual([0, 0]);
    runPasses(module, [fuseRmsNorm], options);
    expect(count(module, 'RMSNormalization')).toBe(norms);
  });

  it("takes every layer's attention scale into the query's weights", { timeout: 120_000 }, async () => {
    const module = await decoder();
    const { remarks } = runPasses(module, [freezeShapes({ bindings: LENGTHS }), foldAttentionScale], {
      verifyValues: true,
    });
    expect(remarks.map(({ text }) => text)).toEqual([]);
    const scales = module
      .graph()
      .nodes.filter(({ op }) => op === 'Attention')
      .map((node) => node.float('scale', Number.NaN));
    expect(scales).toEqual([1, 1, 1, 1, 1]);
  });
});
