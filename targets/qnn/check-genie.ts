import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { z } from 'zod';
import { NpucError } from '../../compiler/errors.ts';
import { inverseFrequencies } from '../../compiler/import/huggingface/rope.ts';
import { loadTokenizer } from '../../compiler/runtime/tokenizer.ts';
import { describeFile } from '../manifest.ts';
import { checkGraphs } from './check-genie-graphs.ts';
import { CONFIG, type GenieManifest, keepSpaces } from './genie-bundle.ts';
import {
  extensionSchema,
  type GenieConfig,
  genieConfigSchema,
  type HtpExtension,
  makeEmbedding,
  readRope,
} from './genie-config.ts';
import { TABLE_BYTES, tableFiles } from './genie-table.ts';
import { type ContextInfo, readContextBinary } from './read-context.ts';
import type { Toolchain } from './toolchain.ts';

/** A bundle as it was read: what the parts say, each from its own file. */
export interface ReadBundle {
  readonly manifest: GenieManifest;
  readonly config: GenieConfig;
  readonly extension: HtpExtension;
  /** The parsed tokenizer file that the configuration names. */
  readonly tokenizer: Readonly<Record<string, unknown>>;
  /** What each context binary holds, by its name in the configuration. */
  readonly contexts: ReadonlyMap<string, ContextInfo>;
}

/**
 * Compares the parts of a bundle: configuration, extension file, tokenizer, the graphs as read back from the binaries, and
 * what the checkpoint was. Genie itself does not notice most of this and writes nonsense.
 * @returns warnings
 * @throws QN021 naming every mismatch at once, TG110 when the folder is no bundle, QN014 when a binary cannot be read
 */
export async function checkGenieBundle(folder: string, toolchain: Toolchain): Promise<string[]> {
  const manifest = readGenieManifest(folder);
  const problems: string[] = [];
  const config = readPart(folder, CONFIG, genieConfigSchema, problems);
  if (!config) throw contradiction(folder, problems);
  const { engine, tokenizer } = config.dialog;
  const named = engine.backend.extensions;
  if (named === undefined)
    problems.push(`${CONFIG}: engine.backend.extensions is missing: the SoC is then not checked`);
  const extension = named === undefined ? undefined : readPart(folder, named, extensionSchema, problems);
  const json = readJson(folder, tokenizer.path, problems);
  if (json && !isBundled(folder, tokenizer.path, manifest))
    problems.push(`${tokenizer.path} is not the tokenizer that was bundled`);
  const binaries = engine.model.binary['ctx-bins'];
  for (const name of new Set(binaries)) {
    if (binaries.filter((other) => other === name).length > 1) problems.push(`${CONFIG}: ctx-bins has ${name} twice`);
    if (!existsSync(join(folder, name))) problems.push(`${CONFIG}: ctx-bins names ${name}, which is missing`);
    else if (!isBundled(folder, name, manifest)) problems.push(`${name} is not the binary that was bundled`);
  }
  checkTable(folder, config, manifest, problems);
  // What is read below may be another program's file, or none.
  if (!extension || !json || problems.length > 0) throw contradiction(folder, problems);
  const contexts = new Map<string, ContextInfo>();
  for (const name of binaries) contexts.set(name, await readContextBinary(toolchain, join(folder, name)));
  const found = findContradictions({ manifest, config, extension, tokenizer: json, contexts });
  if (found.problems.length > 0) throw contradiction(folder, found.problems);
  return found.warnings;
}

/**
 * The table that Genie looks rows up in: one of another length it takes without a word, and one of other numbers too.
 */
function checkTable(folder: string, config: GenieConfig, manifest: GenieManifest, problems: string[]): void {
  const { table } = manifest;
  const { embedding } = config.dialog;
  const wanted = table && makeEmbedding(table);
  if (JSON.stringify(embedding) !== JSON.stringify(wanted)) {
    const found = embedding ? JSON.stringify(embedding) : 'missing';
    const why = wanted ? `the graphs take rows: ${JSON.stringify(wanted)}` : 'the graphs take token ids';
    problems.push(`${CONFIG}: embedding is ${found}, ${why}`);
  }
  if (!table) return;
  for (const name of tableFiles(table)) {
    if (!existsSync(join(folder, name))) problems.push(`${name} is missing`);
    else if (!isBundled(folder, name, manifest)) problems.push(`${name} is not the embedding table that was bundled`);
  }
  const bytes = table.rows * table.width * TABLE_BYTES[table.datatype];
  const listed = manifest.files.find(({ path }) => path === table.file)?.bytes;
  if (listed !== bytes || table.rows < manifest.protocol.vocabSize)
    problems.push(
      `${table.file} has ${listed} bytes and ${table.rows} rows, a vocabulary of ${manifest.protocol.vocabSize} takes ${bytes}`,
    );
}

/** Whether a file is byte for byte the one that was bundled. */
function isBundled(folder: string, name: string, { files }: GenieManifest): boolean {
  return files.find(({ path }) => path === name)?.sha256 === describeFile(folder, name).sha256;
}

function contradiction(folder: string, problems: readonly string[]): NpucError {
  const count = problems.length === 1 ? '1 mismatch' : `${problems.length} mismatches`;
  return new NpucError('QN021', {
    message: [`the bundle has ${count}`, ...problems.map((problem) => `  ${problem}`)].join('\n'),
    where: folder,
    hint: 'bundle again, or mend these entries',
  });
}

/** Every contradiction between the parts, and what is allowed but not what Genie documents. */
export function findContradictions(bundle: ReadBundle): { problems: string[]; warnings: string[] } {
  const graphs = checkGraphs(bundle.contexts, bundle.manifest.protocol, bundle.manifest.graphs, bundle.manifest.table);
  return {
    problems: [...checkConfig(bundle), ...checkSoc(bundle), ...checkTokenizer(bundle), ...graphs.problems],
    warnings: graphs.warnings,
  };
}

function checkConfig({ config, manifest, contexts }: ReadBundle): string[] {
  const problems: string[] = [];
  const expect = (key: string, found: unknown, wanted: unknown, why: string): void => {
    if (JSON.stringify(found) !== JSON.stringify(wanted))
      problems.push(`${CONFIG}: ${key} is ${JSON.stringify(found)}, ${why} ${JSON.stringify(wanted)}`);
  };
  const { protocol } = manifest;
  const { context, engine } = config.dialog;
  const { QnnHtp: htp } = engine.backend;
  const positions = engine.model['positional-encoding'];
  expect('context.size', context.size, protocol.cache, 'the graphs have a context of');
  expect('context.n-vocab', context['n-vocab'], protocol.vocabSize, 'the checkpoint has a vocabulary of');
  expect('context.bos-token', context['bos-token'], manifest.startId ?? -1, 'the tokenizer begins with');
  const ends = [context['eos-token']].flat();
  expect('context.eos-token', ends, manifest.eosIds.length > 0 ? manifest.eosIds : [-1], "the checkpoint's are");
  expect('QnnHtp.kv-dim', htp['kv-dim'], protocol.headDim, 'a head has');
  const half = protocol.headDim / 2;
  if (positions) {
    if (htp['pos-id-dim'] !== undefined || htp['rope-theta'] !== undefined)
      problems.push(`${CONFIG}: pos-id-dim and rope-theta cannot stand beside model.positional-encoding`);
    expect('positional-encoding.rope-dim', positions['rope-dim'], half, 'half a head has');
  } else expect('QnnHtp.pos-id-dim', htp['pos-id-dim'], half, 'half a head has');
  checkRotary(config, manifest, problems);
  const spill = Math.max(
    ...[...contexts.values()].flatMap(({ graphs }) => graphs.map((graph) => graph.spillFillBytes)),
  );
  if (htp['spill-fill-bufsize'] < spill)
    problems.push(`${CONFIG}: QnnHtp.spill-fill-bufsize is ${htp['spill-fill-bufsize']}, the graphs need ${spill}`);
  return problems;
}

/** The tables that Genie makes from the configuration must be those that the graphs were calibrated with. */
function checkRotary(config: GenieConfig, { protocol }: GenieManifest, problems: string[]): void {
  const rope = readRope(config);
  if (!rope) {
    // Genie falls back on a base of its own.
    problems.push(`${CONFIG}: rope-theta is missing`);
    return;
  }
  const frequencies = inverseFrequencies(rope, protocol.headDim, protocol.cache);
  const off = protocol.frequencies.findIndex((wanted, i) => Math.abs(frequencies[i]! - wanted) > 1e-5 * wanted);
  if (off >= 0)
    problems.push(
      `${CONFIG}: rope-theta ${rope.theta}${rope.type === 'default' ? '' : ` with ${rope.type} scaling`} gives the frequency ${frequencies[off]} in dimension ${off}, the checkpoint has ${protocol.frequencies[off]}`,
    );
}

function checkSoc({ extension, manifest, contexts }: ReadBundle): string[] {
  const problems: string[] = [];
  const [device] = extension.devices;
  const { soc } = manifest;
  if (device!.soc_model !== soc.number || device!.dsp_arch !== soc.arch)
    problems.push(
      `the extension file is for soc ${device!.soc_model}, ${device!.dsp_arch}; the bundle is for soc ${soc.number}, ${soc.arch} (${soc.name})`,
    );
  const { qairt } = manifest.toolchain;
  for (const [name, context] of contexts) {
    if (context.soc !== soc.number || `v${context.dspArch}` !== soc.arch)
      problems.push(`${name} is for soc ${context.soc}, v${context.dspArch}; the bundle is for soc ${soc.number}`);
    if (qairt !== undefined && !context.buildId.startsWith(`v${qairt}.`))
      problems.push(`${name} was made by QAIRT ${context.buildId}, the manifest says ${qairt}`);
    if (context.graphs.length > 1 && extension.context?.weight_sharing_enabled !== true)
      problems.push(`${name} shares weights between its graphs, the extension file does not enable that`);
  }
  return problems;
}

function checkTokenizer({ tokenizer: json, config, manifest }: ReadBundle): string[] {
  const problems: string[] = [];
  const { path } = config.dialog.tokenizer;
  if (JSON.stringify(keepSpaces(json)) !== JSON.stringify(json))
    problems.push(`${path}: its decoder strips spaces, Genie would join all words`);
  const { vocabSize } = manifest.protocol;
  try {
    const tokenizer = loadTokenizer(json, {}, { where: path });
    if (tokenizer.vocabSize > vocabSize)
      problems.push(`${path}: ${tokenizer.vocabSize} tokens, the checkpoint has a vocabulary of ${vocabSize}`);
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    // Genie takes any JSON file here and fails at the first prompt.
    problems.push(`${path} is not a tokenizer: ${error.message}`);
  }
  return problems;
}

function readPart<T extends z.ZodType>(
  folder: string,
  name: string,
  schema: T,
  problems: string[],
): z.infer<T> | undefined {
  const json = readJson(folder, name, problems);
  if (!json) return undefined;
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  for (const issue of parsed.error.issues) problems.push(`${name}: ${issue.path.join('.')}: ${issue.message}`);
  return undefined;
}

function readJson(folder: string, name: string, problems: string[]): Readonly<Record<string, unknown>> | undefined {
  try {
    const json: unknown = JSON.parse(readFileSync(join(folder, name), 'utf8'));
    if (typeof json === 'object' && json !== null) return json as Readonly<Record<string, unknown>>;
    problems.push(`${name} is not an object`);
  } catch (error) {
    problems.push(`${name} cannot be read: ${(error as Error).message}`);
  }
  return undefined;
}

/** The manifest of a bundle. @throws TG110 */
export function readGenieManifest(folder: string): GenieManifest {
  const problems: string[] = [];
  const manifest = readJson(folder, 'manifest.json', problems) as Partial<GenieManifest> | undefined;
  const lists = [manifest?.files, manifest?.eosIds, manifest?.graphs];
  const whole = manifest?.protocol && manifest.soc && lists.every((list) => Array.isArray(list));
  if (manifest?.kind === 'genie-bundle' && manifest.format === 2 && whole) return manifest as GenieManifest;
  throw new NpucError('TG110', {
    message: [`${folder} is no Genie bundle`, ...problems].join(': '),
    where: folder,
    hint: 'npuc bundle genie makes one',
  });
}
