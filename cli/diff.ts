import type { Argv } from 'yargs';
import { defaultText, readTokens, startTokens } from '../calibration/texts.ts';
import { NpucError } from '../compiler/errors.ts';
import { createProgress, type Progress, progressMode } from '../compiler/progress.ts';
import type { BuildDiff } from '../evaluation/diff/compare-builds.ts';
import type { RunComparison } from '../evaluation/diff/run-artifacts.ts';
import type { LogitReport } from '../evaluation/logits.ts';
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
  readonly html?: string;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** `npuc diff`: two builds, recipes or artifacts: what changed, and what it costs on held-out text. */
export const diffCommand: Command = {
  command: 'diff <reference> <other>',
  describe: 'compare two builds, recipes, artifacts, or a build with its checkpoint: graph, encodings, bytes, quality',
  builder: (args: Argv) =>
    args
      .positional('reference', {
        type: 'string',
        demandOption: true,
        describe: 'compiled folder[:target], .onnx or .tflite file, configuration file, or checkpoint (float)',
      })
      .positional('other', { type: 'string', demandOption: true, describe: 'what it is compared with' })
      .option('html', textFlag('write the comparison as one HTML file'))
      .option('evaluate', textFlag('held-out text that both run on (default: one that comes with npuc), or none'))
      .option('tokens', numberFlag('tokens', 'tokens of it', { whole: true, least: 16 }, { default: 1024 }))
      .option('window', numberFlag('window', 'tokens per window', { whole: true, least: 2 }, { default: 256 }))
      .option('max-ratio', numberFlag('max-ratio', 'exit 1 when the perplexity ratio is above', { above: 0 }))
      .example('$0 diff old/ new/ --html diff.html', '')
      .example('$0 diff build:onnx build:tflite --evaluate none', '')
      .example('$0 diff w8a8.yaml w8a16.yaml', '')
      .example('$0 diff ./SmolLM2 build:tflite --tokens 512 --max-ratio 1.05', ''),
  run: async (args: DiffArguments) => {
    const progress = createProgress(progressMode(args.quiet));
    const diff = await compareViews(args, progress);
    const report = await compareRuns(args, progress);
    if (!diff && !report) {
      throw new NpucError('CK005', {
        message: `a checkpoint is compared by running it, which --evaluate none forbids`,
        hint: 'leave --evaluate out, or compare two builds',
      });
    }
    progress.finish();
    if (args.json) {
      const { spellFigures } = await import('../evaluation/write-report.ts');
      const document = { reference: args.reference, other: args.other, ...report?.logits, ...summarize(diff) };
      process.stdout.write(`${JSON.stringify(document, spellFigures)}\n`);
    } else {
      if (diff) {
        const { renderDiffText } = await import('../evaluation/diff/render-diff-text.ts');
        const { wantsColour } = await import('../evaluation/render-terminal.ts');
        process.stdout.write(renderDiffText(diff, wantsColour()));
      }
      if (report) process.stdout.write(`${diff ? '\n' : ''}${describeRuns(args, report)}`);
    }
    if (args.maxRatio === undefined) return 0;
    if (!report) {
      throw new NpucError('CL001', {
        message: '--max-ratio needs both sides to run: two of checkpoints and compiled language models',
        hint: 'npuc check compares the quality of recipes and ONNX models',
      });
    }
    if (report.logits.ratio <= args.maxRatio) return 0;
    progress.note(`the ratio ${report.logits.ratio.toFixed(4)} is above --max-ratio ${args.maxRatio}`);
    return 1;
  },
};

/** What changed between two builds, recipes or artifacts; nothing where a side is a checkpoint. */
async function compareViews(args: DiffArguments, progress: Progress): Promise<BuildDiff | undefined> {
  const { isArtifact, isRecipe, openView } = await import('./jobs/open-view.ts');
  const { isOutputFolder } = await import('../targets/manifest.ts');
  const seen = (name: string): boolean =>
    isRecipe(name) || isArtifact(name) || isOutputFolder(name) || isOutputFolder(name.replace(/:[^:]*$/, ''));
  if (!seen(args.reference) || !seen(args.other)) {
    if (args.html === undefined) return undefined;
    throw new NpucError('CK005', {
      message: '--html shows two builds, recipes or artifacts side by side, and one of the sides is a checkpoint',
      hint: 'npuc compile writes report.html, which compares each target with its checkpoint',
    });
  }
  progress.stage('read both sides');
  const [a, b] = [await openView(args.reference, args.quiet), await openView(args.other, args.quiet)];
  const { compareBuilds } = await import('../evaluation/diff/compare-builds.ts');
  const both = [args.reference, args.other].every((name) => name.endsWith('.onnx'));
  const run = both && args.evaluate !== 'none' ? await runBoth(args, progress) : undefined;
  const diff = compareBuilds(a, b, run);
  if (args.html !== undefined) {
    const { renderDiffHtml } = await import('../evaluation/diff/render-diff-html.ts');
    const { writeWhole } = await import('./jobs/check.ts');
    writeWhole(args.html, renderDiffHtml(diff));
  }
  return diff;
}

/** Two ONNX files on the same made-up inputs. */
async function runBoth(args: DiffArguments, progress: Progress): Promise<RunComparison | undefined> {
  const { runArtifacts } = await import('../evaluation/diff/run-artifacts.ts');
  progress.stage('run both sides');
  const run = await runArtifacts(args.reference, args.other);
  if (!run)
    progress.note('the values were not compared: shapes are not fixed, inputs differ, or the runtime refuses a side');
  return run;
}

interface Runs {
  readonly logits: LogitReport;
  readonly engines: readonly [string, string];
}

/** Both sides on held-out text; nothing where a side is no language model that runs, or where no text is wanted. */
async function compareRuns(args: DiffArguments, progress: Progress): Promise<Runs | undefined> {
  if (args.evaluate === 'none') return undefined;
  const { isArtifact, isRecipe } = await import('./jobs/open-view.ts');
  const { isModelManifest, isOutputFolder, readAnyManifest } = await import('../targets/manifest.ts');
  for (const name of [args.reference, args.other]) {
    if (isRecipe(name) || isArtifact(name)) return undefined;
    const folder = isOutputFolder(name) ? name : name.replace(/:[^:]*$/, '');
    if (isOutputFolder(folder) && isModelManifest(readAnyManifest(folder))) return undefined;
  }
  const { openSide } = await import('./jobs/open-side.ts');
  const { evaluateLogits } = await import('../evaluation/perplexity.ts');
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
    return { logits: reports.get('other')!, engines: [reference.session.engine, other.session.engine] };
  } finally {
    await reference.session.close();
    await other.session.close();
  }
}

function describeRuns(args: DiffArguments, { logits: report, engines }: Runs): string {
  return [
    `reference   ${args.reference}  ${engines[0]}  perplexity ${report.referencePerplexity.toFixed(3)}`,
    `other       ${args.other}  ${engines[1]}  perplexity ${report.perplexity.toFixed(3)}`,
    `ratio       ${report.ratio.toFixed(4)} ± ${report.ratioError.toFixed(4)}`,
    `KL          ${report.divergence.toFixed(5)} per token`,
    `top-1       ${(100 * report.topAgreement).toFixed(1)} % agree`,
    `SQNR        ${report.sqnr.toFixed(1)} dB`,
    `predictions ${report.predictions}`,
    '',
  ].join('\n');
}

/** What changed, for a program: without what is the same, and without histograms. */
function summarize(diff: BuildDiff | undefined): object {
  if (!diff) return {};
  return {
    changes: {
      quality: diff.quality,
      bytes: diff.bytes,
      files: diff.files.filter(({ a, b }) => a !== b),
      settings: diff.facts.filter(({ changed }) => changed),
      operators: diff.ops.filter(({ a, b }) => a !== b),
      values: diff.values.filter(({ changed }) => changed),
      weights: diff.weights
        .filter(({ changed }) => changed)
        .map(({ name, a, b, numbers }) => ({ name, a: a?.form, b: b?.form, ...numbers })),
    },
  };
}

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
