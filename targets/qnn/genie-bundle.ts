import { constants, copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import type { RopeConfig } from '../../compiler/import/huggingface/config.ts';
import type { DecoderProtocol } from '../../compiler/runtime/decoder-session.ts';
import { loadTokenizer, type Tokenizer } from '../../compiler/runtime/tokenizer.ts';
import { describeFile, type Manifest, type ManifestFile } from '../manifest.ts';
import type { ManifestTarget } from '../target.ts';
import { listParts, partsOf } from './bundle-parts.ts';
import { type BundledGraph, isMistaken } from './check-genie-graphs.ts';
import { EXTENSION, makeExtension, makeGenieConfig, TOKENIZER } from './genie-config.ts';
import { renderGenieReadme } from './genie-readme.ts';
import { type GenieTable, tableFiles, writeGenieTable } from './genie-table.ts';
import { sourceOf } from './qnn-target.ts';
import { type ContextInfo, readContextBinary } from './read-context.ts';
import type { Toolchain } from './toolchain.ts';
import { provideTwins } from './twins.ts';

type JsonObject = Readonly<Record<string, unknown>>;

export const CONFIG = 'genie_config.json';
const README = 'README.md';
const TEMPLATE = 'prompt_template.txt';
const MANIFEST = 'manifest.json';

/** `manifest.json` of a bundle: what the checkpoint and the graphs were, for the consistency check. No clock, no path. */
export interface GenieManifest {
  readonly format: 2;
  readonly kind: 'genie-bundle';
  readonly npuc: string;
  readonly source: Manifest['source'];
  readonly soc: { readonly name: string; readonly number: number; readonly arch: string };
  readonly toolchain: Readonly<Record<string, string>>;
  readonly shared: boolean;
  readonly protocol: DecoderProtocol;
  readonly rope: RopeConfig;
  /** Every graph, by cache, then by new tokens, largest first. */
  readonly graphs: readonly BundledGraph[];
  /** Where the graphs take rows, which Genie looks up. */
  readonly table?: GenieTable;
  /** The token that the checkpoint's tokenizer puts before every text, where it does. */
  readonly startId?: number;
  readonly eosIds: readonly number[];
  readonly files: readonly ManifestFile[];
}

export interface GenieBundleOptions {
  /** Separate binaries, one per graph: the simulator cannot execute one with shared weights. */
  readonly unshared: boolean;
  readonly toolchain: Toolchain;
  readonly npuc: string;
}

/** The qnn target of a compiled folder, where Genie can drive it. @throws QN020 */
export function requireGenieTarget(folder: string, manifest: Manifest): ManifestTarget {
  const target = manifest.targets.qnn;
  const refuse = (message: string, hint: string): never => {
    throw new NpucError('QN020', { message, where: folder, hint });
  };
  if (!target) return refuse(`${folder} has no qnn target`, 'compile with --target qnn');
  if (target.contract !== 'genie' || target.protocol?.contract !== 'genie')
    return refuse(`the qnn target of ${folder} has the contract ${target.contract}, not genie`, 'compile again');
  if (target.facts.ropeType === undefined)
    return refuse(`${folder} does not say how its rotary embedding is made`, 'compile again with this version');
  if (target.facts.ropeType === 'linear')
    return refuse('linear rope scaling was never run in Genie', 'use the artifact without Genie');
  const halved = target.graphs.find(({ tokens, cache }) => isMistaken(tokens, cache));
  if (halved)
    return refuse(
      `${halved.name} has as many past slots as new tokens, ${halved.tokens}: Genie takes one for the other and writes another text`,
      `compile with --tokens and --cache of which none is half of the other`,
    );
  // Measured on libGenie 2.51: it takes the context of such a part to be its new tokens.
  const caches = new Set(target.graphs.map(({ cache }) => cache)).size;
  const lookups = new Set(target.graphs.map((graph) => partsOf(graph)[0]!.file)).size;
  if (caches > 1 && lookups < target.graphs.length)
    return refuse(
      `the embedding of ${folder} is a part of its own, which serves ${caches} cache sizes: Genie does not load that`,
      'compile with --embedding lut-f16, with one --cache, or with a --split that leaves the embedding with the layers',
    );
  return target;
}

/**
 * Writes a bundle that Genie loads: context binaries, `genie_config.json`, the backend's extension file, a tokenizer that
 * keeps spaces, a prompt template where the checkpoint has one, `README.md` and `manifest.json` with every digest.
 * @param folder output folder of a compile, its files already checked
 * @param out an existing empty folder
 * @throws QN020 when the folder has nothing for Genie, QN010 and following where twins must be compiled
 */
export async function writeGenieBundle(
  folder: string,
  manifest: Manifest,
  out: string,
  options: GenieBundleOptions,
): Promise<GenieManifest> {
  const target = requireGenieTarget(folder, manifest);
  const { toolchain } = options;
  const shared = Boolean(target.facts.shared) && !options.unshared;
  const sources = await findBinaries(folder, target, options);
  const binaries = sources.map((path) => basename(path));
  for (const path of sources) copyFileSync(path, join(out, basename(path)), constants.COPYFILE_FICLONE);
  const contexts: ContextInfo[] = [];
  for (const name of binaries) contexts.push(await readContextBinary(toolchain, join(out, name)));
  const graphs = contexts.flatMap((context) => context.graphs);
  const rope = readRopeFacts(target);
  const { tokenizer, generation, json } = readTokenizerFiles(folder);
  const write = (name: string, content: string | object): void => {
    const text = typeof content === 'string' ? content : `${JSON.stringify(content, undefined, 1)}\n`;
    writeFileSync(join(out, name), text);
  };
  const { protocol } = target;
  const table = writeGenieTable(folder, target, out);
  const startId = readStartId(tokenizer, folder);
  write(
    CONFIG,
    makeGenieConfig({
      cache: protocol.cache,
      vocabSize: protocol.vocabSize,
      headDim: protocol.headDim,
      // A fixed context makes the dynamic kind a plain one with another base.
      rope: rope.type === 'dynamic' ? plainRope(rope, protocol) : rope,
      startId,
      eosIds: tokenizer.eosIds,
      generation,
      binaries,
      spillFillBytes: Math.max(...graphs.map((graph) => graph.spillFillBytes)),
      ...(table ? { table } : {}),
    }),
  );
  write(EXTENSION, makeExtension(Number(target.facts.soc), String(target.facts.arch), shared));
  write(TOKENIZER, keepSpaces(json));
  const template = renderTemplate(tokenizer, startId);
  if (template !== undefined) write(TEMPLATE, template);
  const about: Omit<GenieManifest, 'files'> = {
    format: 2,
    kind: 'genie-bundle',
    npuc: options.npuc,
    source: manifest.source,
    soc: { name: manifest.soc.name, number: Number(target.facts.soc), arch: String(target.facts.arch) },
    toolchain: manifest.toolchain,
    shared,
    protocol,
    rope,
    graphs: target.graphs.map((graph) => ({
      tokens: graph.tokens,
      cache: graph.cache,
      parts: partsOf(graph).map((part) => part.graph),
    })),
    ...(table ? { table } : {}),
    ...(startId === undefined ? {} : { startId }),
    eosIds: tokenizer.eosIds,
  };
  const tables = table ? tableFiles(table) : [];
  const names = [...binaries, ...tables, CONFIG, EXTENSION, TOKENIZER, ...(template === undefined ? [] : [TEMPLATE])];
  write(README, renderGenieReadme(about, [...names, README, MANIFEST]));
  const written: GenieManifest = {
    ...about,
    files: [...names, README].sort().map((path) => describeFile(out, path)),
  };
  write(MANIFEST, written);
  return written;
}

/** The binaries to ship, in the order of the graphs. */
async function findBinaries(
  folder: string,
  target: ManifestTarget,
  options: GenieBundleOptions,
): Promise<readonly string[]> {
  if (options.unshared && target.facts.shared) {
    const sources = listParts(target.graphs).map((part) => sourceOf(folder, part));
    const twins = await provideTwins(options.toolchain, sources, Number(target.facts.soc));
    return twins.map((path, index) => join(dirname(path), `${sources[index]!.name}_ctx_qnn.bin`));
  }
  const binaries = target.files
    .filter((path) => path.endsWith('.bin') && path !== target.embedding?.file)
    .map((path) => join(folder, path));
  if (binaries.length > 0) return binaries;
  throw new NpucError('QN020', {
    message: `the qnn target of ${folder} has no context binary`,
    where: folder,
    hint: 'compile again',
  });
}

function readRopeFacts({ facts }: ManifestTarget): RopeConfig {
  return {
    type: facts.ropeType as RopeConfig['type'],
    theta: Number(facts.ropeTheta),
    factor: Number(facts.ropeFactor),
    lowFrequencyFactor: Number(facts.ropeLowFrequencyFactor),
    highFrequencyFactor: Number(facts.ropeHighFrequencyFactor),
    originalPositions: Number(facts.ropeOriginalPositions),
  };
}

/** The base that gives the frequencies of a graph: the second of them is theta^(-2/headDim). */
function plainRope(rope: RopeConfig, { frequencies, headDim }: DecoderProtocol): RopeConfig {
  const second = frequencies[1];
  return { ...rope, type: 'default', factor: 1, theta: second === undefined ? rope.theta : second ** (-headDim / 2) };
}

interface TokenizerFiles {
  readonly tokenizer: Tokenizer;
  readonly generation: JsonObject;
  readonly json: JsonObject;
}

function readTokenizerFiles(folder: string): TokenizerFiles {
  const read = (name: string): JsonObject | undefined =>
    existsSync(join(folder, name)) ? (JSON.parse(readFileSync(join(folder, name), 'utf8')) as JsonObject) : undefined;
  const json = read('tokenizer.json');
  if (!json) throw new NpucError('TG111', { message: 'tokenizer.json is missing', where: folder });
  const generation = read('generation_config.json') ?? {};
  const template = join(folder, 'chat_template.jinja');
  const tokenizer = loadTokenizer(json, read('tokenizer_config.json') ?? {}, {
    where: folder,
    generationConfig: generation,
    ...(existsSync(template) ? { chatTemplate: readFileSync(template, 'utf8') } : {}),
  });
  return { tokenizer, generation, json };
}

/**
 * Drops the decoder step that strips a leading space. Genie decodes piece by piece, so with it every space between words
 * would go (facts genie-cnn A).
 */
export function keepSpaces(json: JsonObject): JsonObject {
  const decoder = json.decoder as { type?: unknown; decoders?: readonly { type?: unknown }[] } | null | undefined;
  if (decoder?.type === 'Strip') return { ...json, decoder: null };
  if (decoder?.type !== 'Sequence' || !Array.isArray(decoder.decoders)) return json;
  const decoders = (decoder.decoders as { type?: unknown }[]).filter(({ type }) => type !== 'Strip');
  return { ...json, decoder: { ...decoder, decoders } };
}

/**
 * Genie leaves the tokenizer's own additions out and puts `bos-token` before every prompt, unless it is -1 (measured on its
 * tensor dumps): so that must be what the tokenizer adds, which is not every checkpoint's BOS.
 * @throws QN020 for a tokenizer that adds something else
 */
function readStartId(tokenizer: Tokenizer, where: string): number | undefined {
  const added = tokenizer.encode('', { addSpecialTokens: true });
  if (added.length <= 1) return added[0];
  throw new NpucError('QN020', {
    message: `the tokenizer adds ${added.length} tokens to every text, Genie one at most: ${added.join(', ')}`,
    where,
  });
}

/** One user turn in the checkpoint's chat template, `{prompt}` standing for the text. Genie adds the start token itself. */
function renderTemplate(tokenizer: Tokenizer, startId: number | undefined): string | undefined {
  if (tokenizer.chatTemplate === undefined) return undefined;
  const text = tokenizer.applyChatTemplate([{ role: 'user', content: '{prompt}' }], { addGenerationPrompt: true });
  const start = startId === undefined ? undefined : tokenizer.tokenOf(startId);
  return start !== undefined && text.startsWith(start) ? text.slice(start.length) : text;
}
