import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { cacheFolder } from '../../compiler/cache.ts';
import { NpucError } from '../../compiler/errors.ts';
import type { NativeToolchain } from '../../compiler/runtime/ort-native.ts';
import { type ObtainOptions, obtainWheel } from './obtain-wheel.ts';
import { readZipDirectory, unpackZipEntry } from './read-zip.ts';
import {
  TOOLCHAIN_RECIPES,
  type ToolchainLibraries,
  type ToolchainName,
  type ToolchainRecipe,
} from './toolchain-recipes.ts';

export type { ToolchainProgress } from './obtain-wheel.ts';
export type { ToolchainName } from './toolchain-recipes.ts';

interface InstalledFolder<Name extends ToolchainName> extends Pick<NativeToolchain, 'root' | 'versions'> {
  readonly name: Name;
  readonly version: string;
  /** The terms that were accepted, where there were any. */
  readonly licenceFile: Name extends 'qnn' ? string : undefined;
}

/** An installed toolchain. All paths are absolute. */
export type InstalledToolchain<Name extends ToolchainName = ToolchainName> = InstalledFolder<Name> &
  ToolchainLibraries[Name];

/** Qualcomm's, which compiles and simulates. */
export type Toolchain = InstalledToolchain<'qnn'>;

export interface InstallOptions extends ObtainOptions {
  /** The user has accepted the vendor's licence. */
  readonly acceptLicence: boolean;
  /** Another version than the chosen one. */
  readonly version?: string;
}

export interface ToolchainStatus {
  readonly name: ToolchainName;
  readonly version: string;
  /** Whether it is the one that compiles. */
  readonly chosen: boolean;
  readonly state: 'installed' | 'absent' | 'damaged' | 'host-unsupported';
  /** Where it is or would be. */
  readonly root: string;
  /** Why it cannot be used. */
  readonly reason?: string;
  readonly bytes?: number;
  readonly versions?: Readonly<Record<string, string>>;
}

const RECORD = 'toolchain.json';
const DAY_MS = 86_400_000;

interface InstallRecord {
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
}

/** Where a version of a toolchain lies once it is installed. */
export function toolchainRoot(name: ToolchainName, version: string = chosenVersion(name)): string {
  return cacheFolder('toolchains', `${name}-${version}`);
}

const selected = new Map<ToolchainName, string>();

/**
 * Chooses a version for this process, over what the environment and the user's choice say.
 * @param text `qnn`, `qnn@2.7.0` or `litert`
 * @returns the toolchain's name
 * @throws CL001 for a toolchain or version that is not known
 */
export function selectToolchain(text: string): ToolchainName {
  const [name = '', version] = text.split('@');
  if (!isToolchainName(name)) {
    const hint = Object.keys(TOOLCHAIN_RECIPES).join(', ');
    throw new NpucError('CL001', { message: `there is no toolchain ${name}`, hint });
  }
  if (version !== undefined) selected.set(name, recipeOf(name, version).version);
  return name;
}

function isToolchainName(name: string): name is ToolchainName {
  return Object.hasOwn(TOOLCHAIN_RECIPES, name);
}

/** Chooses the version that later processes use. @throws CL001 for a version that is not known, QN001 when it is not installed */
export function useToolchain(name: ToolchainName, version: string): void {
  requireToolchain(name, recipeOf(name, version).version);
  const path = chosenFile(name);
  writeFileSync(path, `${version}\n`);
}

/** Removes a version; one that was chosen is not any longer. */
export function removeToolchain(name: ToolchainName, version: string): void {
  rmSync(toolchainRoot(name, recipeOf(name, version).version), { recursive: true, force: true });
  const file = chosenFile(name);
  if (existsSync(file) && readFileSync(file, 'utf8').trim() === version) rmSync(file);
}

const chosenFile = (name: ToolchainName): string => cacheFolder('toolchains', `${name}.chosen`);

/**
 * The version that compiles: `--toolchain`, else `NPUC_QNN`, else what `npuc toolchain use` chose, else the newest that is
 * there, else the newest.
 * @throws CL001 for a version that is not known
 */
export function chosenVersion(name: ToolchainName): string {
  const here = selected.get(name) ?? process.env[`NPUC_${name.toUpperCase().replaceAll('-', '_')}`];
  if (here) return recipeOf(name, here.replace(`${name}@`, '')).version;
  const file = chosenFile(name);
  if (existsSync(file)) return recipeOf(name, readFileSync(file, 'utf8').trim()).version;
  const versions = TOOLCHAIN_RECIPES[name].map(({ version }) => version);
  return versions.find((version) => existsSync(toolchainRoot(name, version))) ?? versions[0]!;
}

function recipeOf<Name extends ToolchainName>(name: Name, version: string): ToolchainRecipe<Name> {
  const recipes: readonly ToolchainRecipe<Name>[] = TOOLCHAIN_RECIPES[name];
  const found = recipes.find((recipe) => recipe.version === version);
  if (found) return found;
  throw new NpucError('CL001', {
    message: `there is no version ${version} of the ${name} toolchain`,
    hint: `known are ${recipes.map((recipe) => recipe.version).join(' and ')}`,
  });
}

/** Why this machine cannot run a toolchain, or undefined when it can. */
export function hostObstacle(name: ToolchainName): string | undefined {
  if (process.platform !== 'linux' || process.arch !== 'x64')
    return `this is ${process.platform} ${process.arch}, the vendor's libraries exist for linux x64 only`;
  const [major, minor] = TOOLCHAIN_RECIPES[name][0]!.glibc;
  const found = glibcVersion();
  if (!found) return `the C library is not glibc, the vendor's libraries need glibc ${major}.${minor} or newer`;
  const [foundMajor = 0, foundMinor = 0] = found.split('.').map(Number);
  if (foundMajor < major || (foundMajor === major && foundMinor < minor))
    return `glibc is ${found}, the vendor's libraries need ${major}.${minor} or newer`;
  return undefined;
}

let glibc: string | undefined | null = null;

function glibcVersion(): string | undefined {
  if (glibc === null) {
    const report = process.report as typeof process.report & { excludeNetwork?: boolean };
    const before = report.excludeNetwork;
    // Without this the report resolves the names of all open connections, which can take seconds.
    report.excludeNetwork = true;
    const header = (report.getReport() as unknown as { header: { glibcVersionRuntime?: string } }).header;
    report.excludeNetwork = before;
    glibc = header.glibcVersionRuntime;
  }
  return glibc;
}

/** The installed toolchain, or undefined when it is absent, damaged, or cannot run on this machine. */
export function findToolchain<Name extends ToolchainName>(
  name: Name,
  version: string = chosenVersion(name),
): InstalledToolchain<Name> | undefined {
  if (hostObstacle(name) !== undefined || inspectInstall(name, version).state !== 'installed') return undefined;
  return describeToolchain(name, version);
}

/**
 * The installed toolchain.
 * @throws QN001 when it is not installed, QN002 on a machine that cannot run it, QN006 when its files are damaged.
 */
export function requireToolchain<Name extends ToolchainName>(
  name: Name,
  version: string = chosenVersion(name),
): InstalledToolchain<Name> {
  checkHost(name);
  const { state, reason, root } = inspectInstall(name, version);
  if (state === 'installed') return describeToolchain(name, version);
  const hint = installCommand(name, version);
  if (state === 'damaged')
    throw new NpucError('QN006', {
      message: `the ${name} toolchain ${version} is damaged: ${reason}`,
      where: root,
      hint,
    });
  throw new NpucError('QN001', { message: `the ${name} toolchain ${version} is not installed`, hint });
}

/** What is there, for `npuc doctor` and `npuc toolchain`; never throws for an absent or damaged toolchain. */
export function toolchainStatus(): ToolchainStatus[] {
  return (Object.keys(TOOLCHAIN_RECIPES) as ToolchainName[]).flatMap((name) => {
    const obstacle = hostObstacle(name);
    const chosenOne = chosenVersion(name);
    return TOOLCHAIN_RECIPES[name].map(({ version, versions }): ToolchainStatus => {
      const root = toolchainRoot(name, version);
      const about = { name, version, chosen: version === chosenOne, root };
      if (obstacle !== undefined) return { ...about, state: 'host-unsupported', reason: obstacle };
      const { state, reason, bytes } = inspectInstall(name, version);
      return {
        ...about,
        state,
        ...(reason === undefined ? {} : { reason }),
        ...(bytes === undefined ? {} : { bytes, versions }),
      };
    });
  });
}

/**
 * Downloads the pinned wheels with the user's own pip (so its index, proxy and certificate settings hold), checks their
 * SHA-256 and unpacks the libraries that are used into the cache folder. The folder appears in one rename: an interrupted
 * run leaves nothing that looks installed, verified wheels are kept for the next try, and two runs at once both end well.
 * An installed toolchain is returned as it is.
 * @throws QN002 on a machine that cannot run it, QN003 without the licence accepted, QN004 when the download fails, QN005
 *   when a wheel is not the pinned one, IO002 when the cache cannot be written.
 */
export async function installToolchain<Name extends ToolchainName>(
  name: Name,
  options: InstallOptions,
): Promise<InstalledToolchain<Name>> {
  checkHost(name);
  const recipe = recipeOf(name, options.version ?? chosenVersion(name));
  const { version } = recipe;
  const root = toolchainRoot(name, version);
  const present = findToolchain(name, version);
  if (present) return present;
  const { licence } = recipe;
  if (licence && !options.acceptLicence)
    throw new NpucError('QN003', {
      message: `the ${name} toolchain comes under the vendor's own licence (${licence.title}), which you have to accept`,
      hint:
        `${installCommand(name, version)}; the licence is ${basename(licence.entry)} in the ` +
        `${licence.wheel} wheel and lies at ${join(root, licence.entry)} after the download; ` +
        `to read it before: npuc toolchain licence ${name}`,
    });
  const toolchains = dirname(root);
  return await guardWrites(toolchains, async () => {
    mkdirSync(toolchains, { recursive: true });
    removeAbandoned(toolchains);
    const staging = mkdtempSync(join(toolchains, `${name}-partial-`));
    try {
      const files: InstallRecord['files'][number][] = [];
      for (const wheel of recipe.wheels) {
        const path = await obtainWheel(wheel, toolchains, options);
        for (const entry of readZipDirectory(path)) {
          if (!wheel.wants(entry.name)) continue;
          options.signal?.throwIfAborted();
          options.progress?.({ stage: 'unpack', file: entry.name });
          const target = join(staging, entry.name);
          mkdirSync(dirname(target), { recursive: true });
          await unpackZipEntry(path, entry, target);
          if (wheel.executables?.has(entry.name)) chmodSync(target, 0o755);
          files.push({ path: entry.name, bytes: entry.size });
        }
      }
      const record: InstallRecord = { files };
      writeFileSync(
        join(staging, RECORD),
        `${JSON.stringify({ name, version: recipe.version, ...record }, null, 2)}\n`,
      );
      // Two renames, so that another install sees the toolchain missing for an instant only.
      if (inspectInstall(name, version).state === 'damaged') moveAside(root, `${staging}-damaged`);
      renameSync(staging, root);
    } catch (cause) {
      // Another process may have been faster: its folder, made from the same digests, is as good.
      const finished = findToolchain(name, version);
      if (!finished) throw cause;
      return finished;
    } finally {
      for (const path of [staging, `${staging}-damaged`]) rmSync(path, { recursive: true, force: true });
    }
    for (const wheel of recipe.wheels) rmSync(join(toolchains, wheel.file), { force: true });
    return describeToolchain(name, version);
  });
}

/**
 * Fetches the wheel that holds the vendor's licence and unpacks only that file, so that it can be read before accepting.
 * @returns The licence file's path in the cache folder.
 * @throws QN004, QN005, IO002 as installToolchain.
 */
export async function fetchLicence(
  name: ToolchainName,
  options: ObtainOptions & Pick<InstallOptions, 'version'> = {},
): Promise<string> {
  const { licence, wheels, version } = recipeOf(name, options.version ?? chosenVersion(name));
  if (!licence) {
    throw new NpucError('CL001', {
      message: `the ${name} toolchain is open source: there is no licence to accept`,
      hint: installCommand(name, version),
    });
  }
  const fileOf = (toolchain: InstalledToolchain): string => join(toolchain.root, licence.entry);
  const installed = findToolchain(name, version);
  if (installed) return fileOf(installed);
  const toolchains = dirname(toolchainRoot(name, version));
  return await guardWrites(toolchains, async () => {
    mkdirSync(toolchains, { recursive: true });
    try {
      const wheel = wheels.find((candidate) => candidate.project === licence.wheel)!;
      const path = await obtainWheel(wheel, toolchains, options);
      const entry = readZipDirectory(path).find((candidate) => candidate.name === licence.entry)!;
      const target = join(toolchains, `${name}-${version}-${basename(licence.entry)}`);
      rmSync(target, { force: true });
      await unpackZipEntry(path, entry, target);
      return target;
    } catch (cause) {
      // An install that finished meanwhile has removed the kept wheel and brought the licence.
      const finished = findToolchain(name, version);
      if (!finished) throw cause;
      return fileOf(finished);
    }
  });
}

function describeToolchain<Name extends ToolchainName>(name: Name, version: string): InstalledToolchain<Name> {
  const root = toolchainRoot(name, version);
  const { libraries, licence, versions } = recipeOf(name, version);
  const paths = Object.entries(libraries).map(([key, path]) => [key, join(root, path)]);
  const folder = { name, version, root, licenceFile: licence && join(root, licence.entry), versions };
  return { ...folder, ...Object.fromEntries(paths) } as InstalledToolchain<Name>;
}

function inspectInstall(
  name: ToolchainName,
  version: string,
): Pick<ToolchainStatus, 'state' | 'reason' | 'root' | 'bytes'> {
  const root = toolchainRoot(name, version);
  if (!existsSync(root)) return { state: 'absent', root };
  let record: InstallRecord;
  try {
    record = JSON.parse(readFileSync(join(root, RECORD), 'utf8')) as InstallRecord;
    let total = 0;
    for (const { path, bytes } of record.files) {
      // Hashing 280 MB at every start would cost more than most compiles; the size finds truncated files.
      if (statSync(join(root, path)).size !== bytes)
        return { state: 'damaged', root, reason: `${path} has another size` };
      total += bytes;
    }
    return { state: 'installed', root, bytes: total };
  } catch (cause) {
    return { state: 'damaged', root, reason: (cause as Error).message };
  }
}

/** The command that installs a version. */
export function installCommand(name: ToolchainName, version: string = chosenVersion(name)): string {
  const newest = version === TOOLCHAIN_RECIPES[name][0]!.version;
  const accept = recipeOf(name, version).licence ? ' --accept-licence' : '';
  return `npuc toolchain install ${name}${newest ? '' : ` --version ${version}`}${accept}`;
}

function checkHost(name: ToolchainName): void {
  const obstacle = hostObstacle(name);
  if (obstacle !== undefined)
    throw new NpucError('QN002', {
      message: `the ${name} toolchain cannot run here: ${obstacle}`,
      hint: 'compile and simulate on a Linux x64 machine; the onnx and tflite targets work everywhere',
    });
}

/** Another install may have moved it already. */
function moveAside(path: string, target: string): void {
  try {
    renameSync(path, target);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
  }
}

/** Removes what runs that died more than a day ago have left; a younger folder may belong to a run in progress. */
function removeAbandoned(folder: string): void {
  for (const entry of readdirSync(folder)) {
    if (!entry.includes('-partial-')) continue;
    const path = join(folder, entry);
    if (Date.now() - statSync(path).mtimeMs > DAY_MS) rmSync(path, { recursive: true, force: true });
  }
}

async function guardWrites<T>(folder: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code === 'ENOSPC' || code === 'EACCES' || code === 'EROFS' || code === 'ENOTDIR')
      throw new NpucError('IO002', {
        message: `the toolchain cannot be written: ${(cause as Error).message}`,
        where: folder,
        hint: 'about 600 MB are needed during the install; NPUC_CACHE chooses another folder',
        cause,
      });
    throw cause;
  }
}
