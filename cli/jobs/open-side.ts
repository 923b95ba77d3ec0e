import { statSync } from 'node:fs';
import { buildPlainDecoder } from '../../calibration/decoder-statistics.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { readDecoderModel } from '../../compiler/import/decoder-model.ts';
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

/** A compiled folder with an optional `:target`, or a checkpoint as its float model. */
export async function openSide(name: string, cache: number): Promise<Side> {
  const cut = name.lastIndexOf(':');
  const [folder, target] =
    cut > 0 && !name.startsWith('hf:') ? [name.slice(0, cut), name.slice(cut + 1)] : [name, undefined];
  if (statSync(folder, { throwIfNoEntry: false })?.isDirectory() && isOutputFolder(folder)) {
    const opened = await openCompiled(folder, target);
    return { session: opened.session, tokenizer: opened.tokenizer, cache: opened.session.protocol.cache };
  }
  const checkpoint = await openCheckpoint(name);
  const { config, weights } = readDecoderModel(checkpoint);
  const context = Math.min(cache, config.maxPositions);
  const graphs = new Map<number, Runner>();
  for (const size of [Math.min(64, context / 2), 1])
    graphs.set(size, await openModule(buildPlainDecoder(config, weights, size, context)));
  return {
    session: new DecoderSession({ protocol: makeProtocol(config, plainContract, context), graphs }),
    tokenizer: checkpoint.tokenizer!,
    cache: context,
  };
}
