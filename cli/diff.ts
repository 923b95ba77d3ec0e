import type { Argv } from 'yargs';
import { defaultText, readTokens, startTokens } from '../calibration/texts.ts';
import { NpucError } from '../compiler/errors.ts';
import { createProgress, progressMode } from '../compiler/progress.ts';
import type { Command } from './commands.ts';
import { numberFlag, textFlag } from './flags.ts';
import type { Side } from './jobs/open-side.ts';

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

/** `npuc diff`: any two of checkpoint and compiled artifacts, side by side on held-out text. */
export const diffCommand: Command = {
  command: 'diff <reference> <other>',
  describe: 'compare two of: a checkpoint (float), a compiled artifact (folder[:target])',
  builder: (args: Argv) =>
    args
      .positional('reference', { type: 'string', demandOption: true })
      .positional('other', { type: 'string', demandOption: true })
      .option('evaluate', textFlag('held-out text (default: one that comes with npuc)'))
      .option('tokens', numberFlag('tokens', 'tokens of it', { whole: true, least: 16 }, { default: 1024 }))
      .option('window', numberFlag('window', 'tokens per window', { whole: true, least: 2 }, { default: 256 }))
      .option('max-ratio', numberFlag('max-ratio', 'exit 1 when the perplexity ratio is above', { above: 0 }))
      .example('$0 diff ./SmolLM2 build:tflite --tokens 512', '')
      .example('$0 diff build:onnx build:qnn --max-ratio 1.01', ''),
  run: async (args: DiffArguments) => {
    const { openSide } = await import('./jobs/open-side.ts');
    const { evaluateLogits } = await import('../evaluation/perplexity.ts');
    const progress = createProgress(progressMode(args.quiet));
    progress.stage('open');
    const other = await openSide(args.other, args.window);
    const reference = await openSide(args.reference, other.cache);
    try {
      const ids = readCommonTokens(args, reference, other);
      progress.stage('compare');
      const reports = await evaluateLogits(reference.session, new Map([['other', other.session]]), ids, {
        window: Math.min(args.window, other.cache, reference.cache),
        prefix: startTokens(other.tokenizer),
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
      if (args.maxRatio === undefined || report.ratio <= args.maxRatio) return 0;
      progress.note(`the ratio ${report.ratio.toFixed(4)} is above --max-ratio ${args.maxRatio}`);
      return 1;
    } finally {
      await reference.session.close();
      await other.session.close();
    }
  },
};

/** Tokens of the text, which must be the same for both sides. @throws CL001 when they are not; as readTokens */
function readCommonTokens(args: DiffArguments, reference: Side, other: Side): readonly number[] {
  const path = args.evaluate ?? defaultText('evaluation');
  const [ours, theirs] = [reference, other].map((side) => readTokens(path, side.tokenizer, args.tokens, 16).ids);
  const sizes = [reference, other].map((side) => side.session.protocol.vocabSize);
  if (sizes[0] === sizes[1] && ours!.every((id, i) => id === theirs![i])) return ours!;
  throw new NpucError('CL001', {
    message: `${args.reference} and ${args.other} do not have the same tokens, so their predictions cannot be compared`,
    hint:
      sizes[0] === sizes[1]
        ? 'their tokenizers cut the text differently'
        : `their vocabularies hold ${sizes[0]} and ${sizes[1]} tokens`,
  });
}
