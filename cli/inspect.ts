import type { Argv } from 'yargs';
import type { Command } from './commands.ts';

interface InspectArguments {
  readonly path: string;
  readonly text: boolean;
  readonly json: boolean;
}

/** `npuc inspect`: what a model, an artifact or an output folder holds. */
export const inspectCommand: Command = {
  command: 'inspect <path>',
  describe: 'say what a checkpoint, .onnx, .tflite, HTP context .bin or output folder holds',
  builder: (args: Argv) =>
    args
      .positional('path', { type: 'string', demandOption: true })
      .option('text', { type: 'boolean', default: false, describe: 'print an ONNX model in the text form of the IR' })
      .example('$0 inspect build/qnn/prefill_128_ctx_qnn.bin', '')
      .example('$0 inspect model.onnx --text', ''),
  run: async (args: InspectArguments) => {
    const { describePath } = await import('./jobs/describe-file.ts');
    const { kind, data, lines } = await describePath(args.path, args.text);
    process.stdout.write(args.json ? `${JSON.stringify({ kind, ...(data as object) })}\n` : `${lines.join('\n')}\n`);
    return 0;
  },
};
