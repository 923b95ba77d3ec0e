import { buildPlainDecoder } from '../../calibration/decoder-statistics.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { readDecoderModel, requireTokenizer } from '../../compiler/import/decoder-model.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import type { Runner } from '../../compiler/runtime/runner.ts';
import type { Tokenizer } from '../../compiler/runtime/tokenizer.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { isOutputFolder } from '../../targets/manifest.ts';
import { openCompiled } from './open-compiled.ts';

/** One side of a comparison, ready to run. */
export interface Side {
  readonly session: DecoderSession;
  readonly tokenizer: Tokenizer;
  readonly cache: number;
}

/**
 * A compiled folder with an optional `:target`, or a checkpoint as its float model.
 * @throws as openCompiled and openCheckpoint; IM110 when the checkpoint has no tokenizer
 */
export async function openSide(name: string, cache: number): Promise<Side> {
  const cut = name.lastIndexOf(':');
  const [folder, target] =
    cut > 0 && !isOutputFolder(name) ? [name.slice(0, cut), name.slice(cut + 1)] : [name, undefined];
  if (isOutputFolder(folder)) {
    const { session, tokenizer } = await openCompiled(folder, target);
    return { session, tokenizer, cache: session.protocol.cache };
  }
  const checkpoint = await openCheckpoint(name);
  try {
    const { config, weights } = readDecoderModel(checkpoint);
    const tokenizer = requireTokenizer(checkpoint);
    const context = Math.min(cache, config.maxPositions);
    const graphs = new Map<number, Runner>();
    for (const size of new Set([Math.min(64, Math.floor(context / 2)), 1]))
      graphs.set(size, await openModule(buildPlainDecoder(config, weights, size, context)));
    const session = new DecoderSession({ protocol: makeProtocol(config, plainContract, context), graphs });
    return { session, tokenizer, cache: context };
  } finally {
    checkpoint.close();
  }
}
