import { statSync } from 'node:fs';
import type { Argv } from 'yargs';
import { buildPlainDecoder } from '../calibration/decoder-statistics.ts';
import { defaultText, readTokens } from '../calibration/texts.ts';
import { openCheckpoint } from '../compiler/import/checkpoint.ts';
import { readDecoderModel } from '../compiler/import/decoder-model.ts';
import { createProgress, progressMode } from '../compiler/progress.ts';
import { DecoderSession } from '../compiler/runtime/decoder-session.ts';
import { openModule } from '../compiler/runtime/engine.ts';
import type { Runner } from '../compiler/runtime/runner.ts';
import type { Tokenizer } from '../compiler/runtime/tokenizer.ts';
import { evaluateLogits } from '../evaluation/perplexity.ts';
import { plainContract } from '../passes/io-contract.ts';
import { makeProtocol } from '../passes/protocol.ts';
import { isOutputFolder } from '../targets/manifest.ts';
import type { Command } from './commands.ts';
import { openCompiled } from './jobs/open-compiled.ts';

interface DiffArguments {
  readonly reference: string;
  readonly other: string;
  readonly evaluate?: string;
  readonly tokens: number;
  readonly window: number;
  readonly maxRatio?: number;
  readonly json: boolean;
  readonly quiet: boolean;
}

interface Side {
  readonly session: DecoderSession;
  readonly tokenizer: Tokenizer;
  readonly cache: number;
}

/** `npuc diff`: any two of checkpoint and compiled artifacts, side by side on held-out text. */
export const diffCommand: Command = {
  command: 'diff <reference> <other>',
  describe: 'compare two of: a checkpoint (float), a compiled artifact (folder[:target])',
  builder: (args: Argv) =>
    args
      .positional('reference', { type: 'string', demandOption: true })
      .positional('other', { type: 'string', demandOption: true })
      .option('evaluate', { type: 'string', describe: 'held-out text (default: one that comes with npuc)' })
      .option('tokens', { type: 'number', default: 1024, describe: 'tokens of it' })
      .option('window', { type: 'number', default: 256, describe: 'tokens per window' })
      .option('max-ratio', { type: 'number', describe: 'exit 1 when the perplexity ratio is above' })
      .example('$0 diff ./SmolLM2 build:tflite --tokens 512', '')
      .example('$0 diff build:onnx build:qnn --max-ratio 1.01', ''),
  run: async (args: DiffArguments) => {
    const progress = createProgress(progressMode(args.quiet));
    progress.stage('open');
    const other = await openSide(args.other, args.window);
    const reference = await openSide(args.reference, other.cache);
    try {
      const { ids } = readTokens(args.evaluate ?? defaultText('evaluation'), other.tokenizer, args.tokens, 16);
      progress.stage('compare');
      const reports = await evaluateLogits(reference.session, new Map([['other', other.session]]), ids, {
        window: Math.min(args.window, other.cache, reference.cache),
        prefix: [],
        onProgress: (done, total) => progress.update(done, total),
      });
      progress.finish();
      const report = reports.get('other')!;
      if (args.json)
        process.stdout.write(`${JSON.stringify({ reference: args.reference, other: args.other, ...report })}\n`);
      else {
        process.stdout.write(
          [
            `reference   ${args.reference}  ${reference.session.engine}  perplexity ${report.referencePerplexity.toFixed(3)}`,
            `other       ${args.other}  ${other.session.engine}  perplexity ${report.perplexity.toFixed(3)}`,
            `ratio       ${report.ratio.toFixed(4)} ± ${report.ratioError.toFixed(4)}`,
            `KL          ${report.divergence.toFixed(5)} per token`,
            `top-1       ${(100 * report.topAgreement).toFixed(1)} % agree`,
            `SQNR        ${report.sqnr.toFixed(1)} dB`,
            `predictions ${report.predictions}`,
            '',
          ].join('\n'),
        );
      }
      return args.maxRatio !== undefined && !(report.ratio <= args.maxRatio) ? 1 : 0;
    } finally {
      await reference.session.close();
      await other.session.close();
    }
  },
};

/** A compiled folder with an optional `:target`, or a checkpoint as its float model. */
async function openSide(name: string, cache: number): Promise<Side> {
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
