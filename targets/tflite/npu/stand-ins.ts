import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { NpuVendor } from './vendors.ts';
import { type ElfSymbol, writeElf } from './write-elf.ts';

/** A library that a vendor's plugin wants to have, and that this tool writes itself. */
interface StandIn {
  readonly file: string;
  readonly symbols: readonly ElfSymbol[];
  /** Loaded before everything else, for a plugin that does not ask for it. */
  readonly preload?: boolean;
  /** Only for finding out what the plugin claims: it compiles nothing. */
  readonly claimsOnly?: boolean;
}

const STAND_INS: Readonly<Record<NpuVendor, readonly StandIn[]>> = {
  // The plugin is linked with the library of the audio processor, and uses nothing of it (facts litert 5).
  qualcomm: [{ file: 'libQnnLpai.so', symbols: [] }],
  openvino: [],
  // Asked for its version before the plugin says which operators it has a form for. xor eax, eax; ret, behind
  // mov byte [rdi + n], ... for 8.2.23, the version that the plugin's default SDK has.
  mediatek: [
    {
      file: 'libneuron_adapter.so',
      claimsOnly: true,
      symbols: [
        {
          name: 'Neuron_getVersion',
          kind: 'function',
          bytes: Uint8Array.of(0xc6, 0x07, 8, 0xc6, 0x47, 1, 2, 0xc6, 0x47, 2, 23, 0x31, 0xc0, 0xc3),
        },
      ],
    },
  ],
  // The plugin was linked without this object; it holds the locale that numbers in JSON are parsed with.
  samsung: [
    {
      file: 'libnpuc_locale.so',
      preload: true,
      symbols: [{ name: '_ZN11flatbuffers13ClassicLocale9instance_E', kind: 'object', bytes: new Uint8Array(8) }],
    },
  ],
};

/**
 * Writes the libraries that a vendor's plugin needs and nobody delivers.
 * @param claimsOnly whether the plugin is asked what it takes, not to compile
 * @returns what the environment needs for them
 */
export function writeStandIns(
  folder: string,
  vendor: NpuVendor,
  claimsOnly: boolean,
): { readonly preload: readonly string[] } {
  mkdirSync(folder, { recursive: true });
  const preload: string[] = [];
  for (const standIn of STAND_INS[vendor]) {
    if (standIn.claimsOnly && !claimsOnly) continue;
    const path = join(folder, standIn.file);
    writeFileSync(path, writeElf(standIn.file, standIn.symbols));
    if (standIn.preload) preload.push(path);
  }
  return { preload };
}
