import { writeFileSync } from 'node:fs';
import { stringify } from 'yaml';
import type { Argv } from 'yargs';
import { EFFORT_WINDOWS, effortRecipe } from '../calibration/effort.ts';
import { isDynamic, makeRecipe, type Recipe } from '../calibration/recipe.ts';
import { defaultText } from '../calibration/texts.ts';
import { NpucError } from '../compiler/errors.ts';
import { createProgress, progressMode } from '../compiler/progress.ts';
import { findToolchain, requireToolchain, selectToolchain } from '../targets/qnn/toolchain.ts';
import { findSoc, requireStatic } from '../targets/socs.ts';
import type { TargetName } from '../targets/target.ts';
import type { Command } from './commands.ts';
import { type CompileConfig, mergeConfig, readConfig } from './config.ts';
import { countFlag, listFlag, numberFlag, textFlag } from './flags.ts';
import type { CompileOptions } from './jobs/compile-decoder.ts';
import { outputOptions } from './output-options.ts';
import { formatBytes, renderModelPlan, renderPlan } from './render-plan.ts';

interface CompileArguments extends Partial<CompileConfig> {
  readonly source?: string;
  readonly config?: string;
  readonly saveConfig?: string;
  readonly dryRun: boolean;
  readonly force: boolean;
  readonly json: boolean;
  readonly quiet: boolean;
}

/** `npuc compile`: checkpoint or ONNX model in, artifacts with a report out. */
export const compileCommand: Command = {
  command: 'compile [source]',
  describe: 'compile a checkpoint or an ONNX model for a SoC, run it, and compare it with the float model',
  builder: (args: Argv) =>
    args
      .positional('source', {
        type: 'string',
        describe: 'Hugging Face folder, .gguf, .onnx, or hf:org/name[@revision]',
      })
      .option('soc', textFlag('SoC by part or marketing name (default SM8750)'))
      .option('scheme', textFlag('w4a16, w8a16, w8a8, fp16, dynamic-int8 or dynamic-int4 (default w4a16)'))
      .option('tokens', listFlag('new tokens per prefill run, comma-separated (default 128)'))
      .option('cache', listFlag('whole context that a graph sees, comma-separated (default 1024)'))
      .option(
        'target',
        listFlag('onnx, qnn, tflite, hf, comma-separated (default: all but hf that this machine can do)'),
      )
      .option('out', textFlag('output folder (default build)', { alias: 'o' }))
      .option('kv', countFlag('kv', 'bits of the key/value cache, 8 or 16 (default 8)'))
      .option(
        'block',
        numberFlag(
          'block',
          '4-bit weights: 0 (per channel), 16, 32, 64 (default); dynamic-int4: 0, 32 (default) to 256',
          {},
        ),
      )
      .option(
        'rounding',
        textFlag('4-bit weights: nearest, or gptq, which takes longer and is closer to float (default gptq)'),
      )
      .option(
        'rotation',
        textFlag('rotate the residual stream: auto, none, hadamard (default: auto at 16-bit activations)'),
      )
      .option(
        'outliers',
        textFlag(
          'excess of channels that dwarf a gated product: auto, none, apart (default: auto at 16-bit activations)',
        ),
      )
      .option('range', textFlag('activation ranges: min-max, percentile, histogram-mse'))
      .option(
        'embedding',
        textFlag('HTP embedding: in-graph (default), or a table beside the graphs: lut-f16, lut-u8 (a scale per row)'),
      )
      .option(
        'profile',
        textFlag(
          'TFLite graphs of a checkpoint: npu (default), litert-lm (npuc bundle litertlm packs it), mediatek (128t512c 1t512c; --split makes shards)',
        ),
      )
      .option('io', textFlag('TFLite ports: float or quantized (default float)'))
      .option(
        'calibrate',
        textFlag('calibration text (default: one that comes with npuc); for ONNX a .npz or a folder of them'),
      )
      .option('effort', textFlag('work for quantization: fast, default, or best, which tries several recipes'))
      .option(
        'overrides',
        listFlag(
          'regex=w4, =w8, =w4:32, =a8 or =a16: the form of weights, or the width of values, whose name matches',
          {
            array: true,
            alias: 'override',
          },
        ),
      )
      .option(
        'weight-budget',
        textFlag('"weights<=90MB": 4-bit weights, and 8 bits where they buy the most within so many bytes', {
          alias: 'budget',
        }),
      )
      .option(
        'calibration-windows',
        countFlag('calibration-windows', 'windows of calibration text (default 32, or as --effort says)'),
      )
      .option('evaluate', textFlag('held-out text (default: one that comes with npuc), or none: artifacts only'))
      .option('encodings-in', textFlag("AIMET's encodings file to use in the place of calibrated encodings"))
      .option(
        'encodings',
        textFlag("version of AIMET's encodings file written beside ONNX: 1.0 or 0.6.1 (default 1.0)"),
      )
      .option(
        'npu',
        listFlag(
          "also compile the TFLite file with LiteRT's plugins: qualcomm (--soc), openvino, mediatek, samsung; vendor:SoC",
        ),
      )
      .option('npu-claims', { type: 'boolean', describe: 'only ask what the plugins take; needs no vendor library' })
      .option('npu-sdk', textFlag("folder with the vendor's own libraries, where they are not public"))
      .option('dlc', { type: 'boolean', describe: "also write every HTP graph as a DLC, for the vendor's own tools" })
      .option('toolchain', textFlag('version of the HTP compiler, such as qnn@2.7.0'))
      .option('eval-tokens', countFlag('eval-tokens', 'tokens of held-out text (default 2048)'))
      .option('prompt', textFlag('prompt of the samples in the report'))
      .option(
        'bind',
        listFlag('ONNX: name=number for a symbolic dimension, input=1x3x224x224 for a shape', { array: true }),
      )
      .option(
        'split',
        textFlag('HTP binary in so many parts, or auto: as few as the SoC and --max-memory allow (default)'),
      )
      .option('split-embedding', { type: 'boolean', describe: 'the embedding as a part of its own' })
      .option('split-head', { type: 'boolean', describe: 'the head as a part of its own' })
      .option(
        'max-memory',
        textFlag('most memory that this process, and the HTP compiler, may each take, such as 12GiB or 800MB'),
      )
      .option('threads', countFlag('threads', 'threads; the bytes do not depend on it'))
      .option('requantize', {
        type: 'boolean',
        describe: 'round the integers of a quantized checkpoint again where a target cannot hold them',
      })
      .option('allow-extrapolation', { type: 'boolean', describe: 'let the cache exceed max_position_embeddings' })
      .option('config', textFlag('configuration file (default: npuc.config.yaml, .json or .mjs here)'))
      .option('save-config', textFlag('write the configuration that was used'))
      .option('dry-run', { type: 'boolean', default: false, describe: 'print plan and sizes, write nothing' })
      .option('force', { type: 'boolean', default: false, describe: 'replace an output folder that npuc did not make' })
      .example('$0 compile ./SmolLM2 --soc SM8750 --scheme w4a16 --tokens 128 --cache 1024 --out build/', '')
      .example('$0 compile ./SmolLM2 --tokens 128,32 --cache 512,1024,2048,4096 --target qnn', '')
      .example('$0 compile ./SmolLM2 --scheme w8a16 --target tflite --npu qualcomm,openvino:PTL', '')
      .example('$0 compile ./Llama-3.2-1B --cache 1024,4096 --max-memory 12GiB --evaluate none', '')
      .example('$0 compile ./SmolLM2 --target tflite --profile mediatek --scheme w8a16 --split 2', '')
      .example('$0 compile ./SmolLM2 --target tflite --profile litert-lm --tokens 128,32 --cache 1024', '')
      .example('$0 compile hf:HuggingFaceTB/SmolLM2-135M-Instruct --soc "Snapdragon 8 Elite" --dry-run', ''),
  run: async (args: CompileArguments) => {
    const file = await readConfig(args.config);
    const config = mergeConfig(file.config, args, file.path);
    if (args.saveConfig !== undefined) saveConfig(args.saveConfig, config);
    const options = compileOptions(config, args);
    // Loaded when needed: help and version must not wait for runtimes.
    const { spellFigures } = await import('../evaluation/write-report.ts');
    if (options.source.endsWith('.onnx')) {
      if (config.weightBudget) {
        throw new NpucError('CL001', {
          message: '--budget is for checkpoints, and this is an ONNX model',
          hint: 'overrides in a configuration file choose the form of single weights',
        });
      }
      if (config.effort !== 'default') {
        throw new NpucError('CL001', {
          message: `--effort ${config.effort} is for checkpoints: what an ONNX model needs is always measured`,
          hint: 'leave it out',
        });
      }
      if (options.targets.includes('hf')) {
        throw new NpucError('CL001', {
          message: '--target hf writes the checkpoint of a language model, and this is an ONNX model',
          hint: '--target onnx writes the quantized model',
        });
      }
      const { compileOnnx, planOnnx } = await import('./jobs/compile-onnx.ts');
      if (args.dryRun) {
        const plan = planOnnx(options, config.bind);
        process.stdout.write(args.json ? `${JSON.stringify(plan)}\n` : renderModelPlan(plan));
        return 0;
      }
      const result = await compileOnnx(options, config.bind);
      process.stdout.write(
        args.json ? `${JSON.stringify(result, spellFigures)}\n` : `${result.text}\n${options.out}/report.html\n`,
      );
      return 0;
    }
    const { compileDecoder, planDecoder } = await import('./jobs/compile-decoder.ts');
    if (args.dryRun) {
      const plan = await planDecoder(options);
      process.stdout.write(args.json ? `${JSON.stringify(plan)}\n` : renderPlan(plan));
      return 0;
    }
    const result = await compileDecoder(options);
    if (args.json) process.stdout.write(`${JSON.stringify(result, spellFigures)}\n`);
    else {
      const limit = config.maxMemory === undefined ? '' : ` of ${formatBytes(config.maxMemory)} allowed`;
      if (!args.quiet) process.stderr.write(`peak memory ${formatBytes(result.peakRssBytes)}${limit}\n`);
      const { renderTerminal } = await import('../evaluation/render-terminal.ts');
      process.stdout.write(
        result.report
          ? `${renderTerminal(result.report)}\n${options.out}/report.html\n`
          : `${options.out}/manifest.json: ${result.manifest.files.length} files, nothing was run\n`,
      );
    }
    return 0;
  },
};

/** @throws IO002 */
function saveConfig(path: string, config: CompileConfig): void {
  try {
    writeFileSync(path, stringify(config));
  } catch (cause) {
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  }
}

/** Checks the configuration and fills in what depends on the machine. @throws CL001, TG001, QN001 */
export function compileOptions(
  config: CompileConfig,
  args: { readonly force: boolean; readonly quiet: boolean },
): CompileOptions {
  if (!config.source)
    throw new NpucError('CL001', { message: 'no checkpoint or model given', hint: 'npuc compile <source>' });
  const soc = findSoc(config.soc);
  if (config.toolchain !== undefined) selectToolchain(config.toolchain);
  const recipe = recipeOf(config);
  const targets = pickTargets(config.target, recipe);
  checkEmbedding(config, targets);
  checkProfile(config, targets);
  return {
    source: config.source,
    out: config.out,
    soc,
    targets,
    targetsAsked: config.target !== undefined,
    recipe,
    outputs: outputOptions(config, targets, recipe, soc),
    shapes: { tokens: config.tokens, caches: [...new Set(config.cache)].sort((a, b) => a - b) },
    allowExtrapolation: config.allowExtrapolation,
    requantize: config.requantize,
    calibrationText: config.calibrate ?? defaultText('calibration'),
    effort: config.effort,
    ...(config.weightBudget === undefined ? {} : { budget: config.weightBudget }),
    calibrationWindows: config.calibrationWindows ?? EFFORT_WINDOWS[config.effort],
    evaluation: {
      text: config.evaluate ?? defaultText('evaluation'),
      tokens: config.evalTokens,
      prompt: config.prompt,
      sampleTokens: 32,
      simulateBelow: 20e6,
    },
    threads: config.threads,
    io: config.io,
    embedding: config.embedding,
    profile: config.profile,
    split: {
      split: config.split,
      embedding: config.splitEmbedding,
      head: config.splitHead,
      ...(config.maxMemory === undefined ? {} : { maxMemory: config.maxMemory }),
    },
    force: args.force,
    progress: createProgress(progressMode(args.quiet)),
  };
}

/** The recipe that a configuration asks for. @throws QT101, QT102 */
export function recipeOf(config: CompileConfig): Recipe {
  const recipe = makeRecipe(config.scheme, {
    cache: config.kv,
    overrides: config.overrides,
    ...(config.block === undefined ? {} : { block: config.block }),
    ...(config.range === undefined ? {} : { range: config.range }),
    ...(config.rounding === undefined ? {} : { rounding: config.rounding }),
    ...(config.rotation === undefined ? {} : { rotation: config.rotation }),
    ...(config.outliers === undefined ? {} : { outliers: config.outliers }),
  });
  return effortRecipe(recipe, config.effort, config);
}

/** @throws CL001 where a table beside the graphs would be no part of what is made */
function checkEmbedding({ embedding, splitEmbedding }: CompileConfig, targets: readonly TargetName[]): void {
  if (embedding === 'in-graph') return;
  if (!targets.includes('qnn')) {
    throw new NpucError('CL001', {
      message: `--embedding ${embedding} is for the qnn target, which is not asked for`,
      hint: 'add --target qnn',
    });
  }
  if (splitEmbedding) {
    throw new NpucError('CL001', {
      message: `--split-embedding has nothing to split off: with --embedding ${embedding} no graph has an embedding`,
      hint: 'leave one of them out',
    });
  }
}

/** @throws CL001 where a profile's graphs cannot be what is asked for */
function checkProfile(
  { profile, io, cache, source, scheme }: Pick<CompileConfig, 'profile' | 'io' | 'cache' | 'source' | 'scheme'>,
  targets: readonly TargetName[],
): void {
  if (profile === 'npu') return;
  if (profile === 'mediatek' && !/a16$/.test(scheme)) {
    throw new NpucError('CL001', {
      message: `--profile mediatek has 16-bit activations, --scheme ${scheme} has not`,
      hint: '--scheme w8a16, or w4a16',
    });
  }
  const refuse = (message: string, hint: string): never => {
    throw new NpucError('CL001', { message, hint });
  };
  if (!targets.includes('tflite'))
    refuse(`--profile ${profile} is for the tflite target, which is not asked for`, 'add --target tflite');
  if (source?.endsWith('.onnx')) refuse(`--profile ${profile} is for checkpoints, not for ONNX models`, 'leave it out');
  if (profile === 'litert-lm' && io === 'quantized')
    refuse('LiteRT-LM takes a mask and gives logits of floats: --io quantized has nothing to change', 'leave --io out');
  if (new Set(cache).size > 1)
    refuse(`--profile ${profile} has one cache for all graphs: --cache takes one size`, 'compile once for each cache');
}

/** Targets asked for, or all that this machine can make. @throws QN001, TG002 for a scheme that qnn cannot have */
function pickTargets(asked: readonly TargetName[] | undefined, recipe: Recipe): TargetName[] {
  if (asked) {
    if (asked.includes('qnn')) {
      requireStatic(recipe);
      requireToolchain('qnn');
    }
    return [...asked];
  }
  return findToolchain('qnn') && !isDynamic(recipe) ? ['onnx', 'tflite', 'qnn'] : ['onnx', 'tflite'];
}
