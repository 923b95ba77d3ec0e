import { execFileSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import yargs from 'yargs';
import { compileCommand, compileOptions } from '../../cli/compile.ts';
import { mergeConfig } from '../../cli/config.ts';
import type { CompileOptions } from '../../cli/jobs/compile-decoder.ts';
import { reproduceCommand } from '../../cli/jobs/reproduce-command.ts';

/** The options that a command line means: split by a shell, parsed as `npuc compile` parses it. */
async function understand(command: string): Promise<CompileOptions> {
  const words = execFileSync('sh', ['-c', `npuc() { for word; do printf '%s\\0' "$word"; done; }\n${command}`])
    .toString()
    .split('\0')
    .slice(0, -1);
  const parser = compileCommand.builder(yargs(words.slice(1)));
  const { _: rest, ...flags } = await parser.parse();
  return compileOptions(mergeConfig({}, { ...flags, source: String(rest[0]) }), { force: false, quiet: true });
}

/** What decides an artifact and its report. */
function essence(options: CompileOptions): unknown {
  const { progress: _progress, force: _force, threads: _threads, soc, ...rest } = options;
  return { ...rest, soc: soc.name };
}

function optionsOf(flags: Readonly<Record<string, unknown>>): CompileOptions {
  return compileOptions(mergeConfig({}, { target: ['onnx'], ...flags }), { force: false, quiet: true });
}

describe('reproduceCommand', () => {
  test.each([
    ['defaults', { source: 'model' }],
    [
      'the demo',
      {
        source: 'fixtures/demo',
        scheme: 'w4a16',
        tokens: [64],
        cache: [256],
        kv: 16,
        calibrationWindows: 16,
        prompt: 'It was',
      },
    ],
    ['a table beside the graphs', { source: 'm', target: ['onnx', 'qnn'], embedding: 'lut-u8' }],
    ['per channel', { source: 'm', scheme: 'w4a16', block: 0 }],
    [
      'ranges, ports, texts',
      {
        source: 'm',
        scheme: 'w8a8',
        range: 'percentile',
        io: 'quantized',
        calibrate: 'a b.txt',
        evaluate: "it's.txt",
        evalTokens: 99,
      },
    ],
    [
      'several of each',
      {
        source: 'm',
        target: ['tflite', 'onnx'],
        tokens: [128, 32],
        cache: [512, 2048],
        allowExtrapolation: true,
        soc: 'SM8550',
      },
    ],
    ['efforts, budgets', { source: 'm', effort: 'best', weightBudget: 'weights<=90MB', rotation: 'hadamard' }],
    ['less effort, but with error feedback', { source: 'm', effort: 'fast', rounding: 'gptq' }],
    [
      'overrides',
      {
        source: 'm',
        overrides: [
          { match: 'layers\\.(0|1)\\.*=$', activation: 16 },
          { match: 'down_proj', weight: { bits: 4, block: 32 } },
          'lm_head=w8',
        ],
      },
    ],
    [
      'what a shell would take for its own',
      { source: "a b'$(touch x)`y`", prompt: '--prompt "$HOME" & \\ * \n #', out: '~/out' },
    ],
  ])('means the same options: %s', async (_name, flags) => {
    const options = optionsOf(flags);
    expect(essence(await understand(reproduceCommand(options)))).toEqual(essence(options));
  });
});
