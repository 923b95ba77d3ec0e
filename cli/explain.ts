import type { Argv } from 'yargs';
import type { Command } from './commands.ts';
import { textFlag } from './flags.ts';

interface ExplainArguments {
  readonly folder: string;
  readonly value?: string;
  readonly target?: string;
  readonly json: boolean;
}

/** `npuc explain`: how the encoding of a value came about. */
export const explainCommand: Command = {
  command: 'explain <folder> [value]',
  describe: 'say how the encoding of a value or weight came about: range, statistics, clipping, what it is tied with',
  builder: (args: Argv) =>
    args
      .positional('folder', { type: 'string', demandOption: true, describe: 'the --out folder of npuc compile' })
      .positional('value', {
        type: 'string',
        describe: 'a value, a weight or a node of your own model; without one, all reasons are counted',
      })
      .option('target', textFlag('onnx, qnn, tflite or hf (default: all that were compiled)'))
      .example('$0 explain build/ layers.3.down_proj', '')
      .example('$0 explain build/ model.layers.0.mlp.up_proj.weight --target qnn', '')
      .example('$0 explain build/ --json', ''),
  run: async (args: ExplainArguments) => {
    const { explainValue } = await import('./jobs/explain-value.ts');
    const decisions = explainValue(args.folder, args.value, args.target);
    if (args.json) {
      process.stdout.write(`${JSON.stringify({ folder: args.folder, value: args.value ?? null, decisions })}\n`);
      return 0;
    }
    const { renderDecisions, renderReasons } = await import('./render-decisions.ts');
    process.stdout.write(args.value === undefined ? renderReasons(decisions) : renderDecisions(args.value, decisions));
    return 0;
  },
};
