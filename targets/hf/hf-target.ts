import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { buildPlainDecoder } from '../../calibration/decoder-statistics.ts';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { writeSafetensors } from '../../compiler/export/safetensors.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { readDecoderModel } from '../../compiler/import/decoder-model.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModules } from '../../compiler/runtime/engine.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { openEmbedding } from '../embedding-file.ts';
import { graphRequests, largestCache } from '../graph-requests.ts';
import type { DecoderTarget, EmitContext, ManifestTarget } from '../target.ts';
import { plainWeights } from './plain-weights.ts';

const FOLDER = 'hf';
const WEIGHTS = `${FOLDER}/model.safetensors`;

/**
 * A Hugging Face checkpoint in f32 whose weights are those that were compiled, quantized and dequantized: any harness that
 * loads checkpoints evaluates them. Activations and caches are not quantized in it.
 */
export const hfTarget: DecoderTarget = {
  name: 'hf',
  weightsOnly: true,
  async emit(decoder: QuantizedDecoder, context: EmitContext): Promise<ManifestTarget> {
    const { out, checkpoint, follows } = context;
    mkdirSync(join(out, FOLDER), { recursive: true });
    const table = follows?.target.embedding;
    const embedding = table && openEmbedding(join(out, table.file), table.form);
    try {
      writeSafetensors(join(out, WEIGHTS), plainWeights(decoder, embedding?.lookup));
    } finally {
      embedding?.close();
    }
    const side = new Map(checkpoint?.tokenizerFiles);
    side.set('config.json', `${JSON.stringify(plainConfig(checkpoint?.config ?? {}), undefined, 2)}\n`);
    for (const [name, text] of side) writeFileSync(join(out, FOLDER, name), text);
    return {
      contract: plainContract.name,
      protocol: makeProtocol(decoder.config, plainContract, largestCache(context.shapes)),
      ports: {},
      graphs: graphRequests(context.shapes).map(({ name, tokens, cache }) => ({ name, tokens, cache, file: WEIGHTS })),
      execution: 'executed',
      facts: { weights: `as in ${follows?.name ?? 'onnx'}`, activations: 'float', rotation: decoder.recipe.rotation },
      files: [WEIGHTS, ...[...side.keys()].map((name) => `${FOLDER}/${name}`)],
    };
  },
  async open(folder, target): Promise<DecoderSession> {
    const checkpoint = await openCheckpoint(join(folder, FOLDER));
    try {
      const { config, weights } = readDecoderModel(checkpoint);
      const modules = target.graphs.map(({ tokens, cache }) => buildPlainDecoder(config, weights, tokens, cache));
      const runners = await openModules(modules);
      const graphs = target.graphs.map(({ tokens, cache }, i) => ({ tokens, cache, runner: runners[i]! }));
      return new DecoderSession({ protocol: target.protocol, graphs });
    } finally {
      checkpoint.close();
    }
  },
};

/** The checkpoint's config for weights in f32 with a head of their own. */
function plainConfig({ quantization_config: _, ...config }: Readonly<Record<string, unknown>>): object {
  return {
    ...config,
    tie_word_embeddings: false,
    torch_dtype: 'float32',
    ...('dtype' in config ? { dtype: 'float32' } : {}),
  };
}
