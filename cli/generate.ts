import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { generateTokens } from '../compiler/runtime/generate.ts';
import type { Command } from './commands.ts';

interface GenerateArguments {
  readonly folder: string;
  readonly target?: string;
  readonly prompt: string;
  readonly chat: boolean;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly seed: number;
  readonly json: boolean;
}

/** `npuc generate`: text from a compiled artifact, driven as its runtime would. */
export const generateCommand: Command = {
  command: 'generate <folder>',
  describe: 'write text with a compiled artifact: prefill in chunks, then token by token',
  builder: (args: Argv) =>
    args
      .positional('folder', { type: 'string', demandOption: true, describe: 'output folder of npuc compile' })
      .option('target', { type: 'string', describe: 'onnx, tflite or qnn (default: the first there is)' })
      .option('prompt', { alias: 'p', type: 'string', demandOption: true })
      .option('chat', {
        type: 'boolean',
        default: false,
        describe: "put the prompt into the checkpoint's chat template",
      })
      .option('max-tokens', { alias: 'n', type: 'number', default: 64 })
      .option('temperature', { type: 'number', default: 0, describe: '0 is greedy' })
      .option('top-k', { type: 'number', default: 0, describe: '0 is all' })
      .option('top-p', { type: 'number', default: 1 })
      .option('seed', { type: 'number', default: 0 })
      .example('$0 generate build/ --target tflite --prompt "The capital of France is"', ''),
  run: async (args: GenerateArguments) => {
    if (!(args.maxTokens > 0))
      throw new NpucError('CL001', { message: `--max-tokens ${args.maxTokens} is not a positive number` });
    const { openCompiled } = await import('./jobs/open-compiled.ts');
    const { session, tokenizer, target } = await openCompiled(args.folder, args.target);
    try {
      const text = args.chat
        ? tokenizer.applyChatTemplate([{ role: 'user', content: args.prompt }], { addGenerationPrompt: true })
        : args.prompt;
      const prompt = tokenizer.encode(text, { addSpecialTokens: !args.chat });
      if (prompt.length === 0) throw new NpucError('CL001', { message: 'the prompt gives no tokens' });
      const stream = tokenizer.stream();
      const ids: number[] = [];
      let out = '';
      const started = performance.now();
      for await (const id of generateTokens(session, prompt, args.maxTokens, tokenizer.eosIds, args)) {
        ids.push(id);
        const piece = stream.push(id);
        out += piece;
        if (!args.json) process.stdout.write(piece);
      }
      const rest = stream.flush();
      out += rest;
      const seconds = (performance.now() - started) / 1000;
      if (args.json) {
        process.stdout.write(
          `${JSON.stringify({ target, engine: session.engine, prompt: text, promptTokens: prompt.length, ids, text: out, seconds })}\n`,
        );
      } else process.stdout.write(`${rest}\n`);
      return 0;
    } finally {
      await session.close();
    }
  },
};
