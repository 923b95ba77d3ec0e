import type { Argv } from 'yargs';
import { NpucError } from '../compiler/errors.ts';
import { generateTokens } from '../compiler/runtime/generate.ts';
import type { Command } from './commands.ts';
import { countFlag, numberFlag, textFlag } from './flags.ts';

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
  readonly cache?: number;
  readonly engine?: 'litert' | 'litert-lm';
  readonly json: boolean;
}

/** `npuc generate`: text from a compiled artifact, driven as its runtime would. */
export const generateCommand: Command = {
  command: 'generate <folder>',
  describe: 'write text with a compiled artifact: prefill in chunks, then token by token',
  builder: (args: Argv) =>
    args
      .positional('folder', { type: 'string', demandOption: true, describe: 'output folder of npuc compile' })
      .option('target', textFlag('onnx, tflite or qnn (default: the first there is)'))
      .option('prompt', textFlag('text to go on from', { alias: 'p', demandOption: true }))
      .option('chat', {
        type: 'boolean',
        default: false,
        describe: "put the prompt into the checkpoint's chat template",
      })
      .option(
        'max-tokens',
        numberFlag('max-tokens', 'tokens to write', { whole: true, least: 1 }, { alias: 'n', default: 64 }),
      )
      .option('temperature', numberFlag('temperature', '0 is greedy', { least: 0 }, { default: 0 }))
      .option(
        'top-k',
        numberFlag('top-k', 'sample from the k likeliest tokens; 0 is all', { whole: true, least: 0 }, { default: 0 }),
      )
      .option(
        'top-p',
        numberFlag('top-p', 'sample from the likeliest tokens of this share', { above: 0, most: 1 }, { default: 1 }),
      )
      .option(
        'seed',
        numberFlag('seed', 'the same seed gives the same text', { whole: true, least: 0 }, { default: 0 }),
      )
      .option(
        'cache',
        countFlag('cache', 'use graphs of this cache size only (default: moves to a larger one when full)'),
      )
      .option('engine', {
        type: 'string',
        choices: ['litert', 'litert-lm'],
        describe: "run TFLite files in that toolchain's native LiteRT instead of LiteRT.js",
      })
      .example('$0 generate build/ --target tflite --prompt "The capital of France is"', '')
      .example('$0 generate build/ --target qnn --cache 512 --prompt "Once upon a time"', ''),
  run: async (args: GenerateArguments) => {
    const { openCompiled } = await import('./jobs/open-compiled.ts');
    if (args.engine !== undefined && args.target !== undefined && args.target !== 'tflite')
      throw new NpucError('CL001', { message: `--engine ${args.engine} runs TFLite files`, hint: '--target tflite' });
    const wanted = args.target ?? (args.engine === undefined ? undefined : 'tflite');
    const { session, tokenizer, target } = await openCompiled(args.folder, wanted, args.engine);
    try {
      if (args.cache !== undefined) session.pinCache(args.cache);
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
          `${JSON.stringify({ target, engine: session.engine, cache: session.cache, prompt: text, promptTokens: prompt.length, ids, text: out, seconds })}\n`,
        );
      } else process.stdout.write(`${rest}\n`);
      return 0;
    } finally {
      await session.close();
    }
  },
};
