import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import type { Command } from './commands.ts';
import { listFlag, textFlag } from './flags.ts';

interface InspectArguments {
  readonly path: string;
  readonly text: boolean;
  readonly json: boolean;
  readonly soc?: string;
  readonly scheme?: string;
  readonly bind?: string | readonly string[];
  readonly fix: boolean;
  readonly out?: string;
  readonly withToolchain: boolean;
}

/** `npuc inspect`: what a model, an artifact or an output folder holds; with `--soc`, what that SoC cannot take of it. */
export const inspectCommand: Command = {
  command: 'inspect <path>',
  describe: 'say what a model or artifact holds; with --soc, which nodes its NPU cannot take',
  builder: (args: Argv) =>
    args
      .positional('path', { type: 'string', demandOption: true })
      .option('text', {
        type: 'boolean',
        default: false,
        describe: 'print an ONNX model in the text form of the IR, a TFLite file likewise',
      })
      .option(
        'soc',
        textFlag('check the model against the HTP of this SoC; exit code 1 when something cannot be mended'),
      )
      .option('scheme', textFlag('what it will be quantized to: w4a16, w8a16 (default), w8a8 or fp16'))
      .option('bind', listFlag('name=number or input=1x3x224x224, as in compile'))
      .option('fix', { type: 'boolean', default: false, describe: 'write the rewritten ONNX model to --out' })
      .option('out', textFlag('where --fix writes'))
      .option('with-toolchain', { type: 'boolean', default: false, describe: "ask the vendor's validator as well" })
      .example('$0 inspect build/qnn/prefill_128_ctx_qnn.bin', '')
      .example('$0 inspect model.onnx --text', '')
      .example('$0 inspect build/tflite/model.tflite --text', '')
      .example('$0 inspect model.onnx --soc SM8650 --scheme w8a8', '')
      .example('$0 inspect model.onnx --soc SM8650 --fix --out fixed.onnx', ''),
  run: async (args: InspectArguments) => {
    checkFlags(args);
    if (args.soc !== undefined) return await lint(args, args.soc);
    const { describePath } = await import('./jobs/describe-file.ts');
    const { kind, data, lines } = await describePath(args.path, args.text);
    process.stdout.write(args.json ? `${JSON.stringify({ kind, ...(data as object) })}\n` : `${lines.join('\n')}\n`);
    return 0;
  },
};

async function lint(args: InspectArguments, soc: string): Promise<number> {
  const { describeLint, exitCodeOf, lintModel } = await import('./jobs/lint-model.ts');
  const result = await lintModel({
    path: args.path,
    soc,
    scheme: args.scheme ?? 'w8a16',
    bind: args.bind === undefined ? [] : [args.bind].flat(),
    withToolchain: args.withToolchain,
    ...(args.fix ? { fix: args.out! } : {}),
  });
  process.stdout.write(args.json ? `${JSON.stringify(result)}\n` : `${describeLint(result).join('\n')}\n`);
  return exitCodeOf(result);
}

/** @throws CL001 for flags that say nothing without another one */
function checkFlags(args: InspectArguments): void {
  const refuse = (message: string, hint: string): never => {
    throw new NpucError('CL001', { message, hint });
  };
  if (args.fix !== (args.out !== undefined)) refuse('--fix and --out go together', '--fix --out fixed.onnx');
  if (args.soc !== undefined && args.text) refuse('--text prints a model, --soc checks it', 'one of them at a time');
  if (args.soc !== undefined) return;
  const idle = (['scheme', 'bind'] as const).find((name) => args[name] !== undefined);
  if (idle || args.fix || args.withToolchain)
    refuse(`--${idle ?? (args.fix ? 'fix' : 'with-toolchain')} needs --soc`, 'name the SoC: --soc SM8650');
}
