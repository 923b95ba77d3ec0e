import type { Wheel } from './obtain-wheel.ts';

/** Vendor toolchains that the user installs; none is ever bundled with this package. */
export type ToolchainName = 'qnn';

/** One version of a toolchain: exact wheels, and what is used of them. */
export interface ToolchainRecipe {
  readonly version: string;
  readonly licence: { readonly title: string; readonly entry: string; readonly wheel: string };
  readonly wheels: readonly Wheel[];
  /** Oldest C library that the wheels' platform tags allow. */
  readonly glibc: readonly [number, number];
  readonly onnxruntimeLibrary: string;
  readonly qnnLibraryFolder: string;
  readonly versions: Readonly<Record<string, string>>;
}

// Digests measured on the wheels that pip delivers for these exact names.
const ONNXRUNTIME: Wheel = {
  project: 'onnxruntime',
  version: '1.32.0',
  file: 'onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl',
  platform: 'manylinux_2_28_x86_64',
  sha256: '5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d',
  bytes: 27773237,
  wants: (entry) =>
    entry === 'onnxruntime/capi/libonnxruntime.so.1.32.0' ||
    entry === 'onnxruntime/LICENSE' ||
    entry === 'onnxruntime/ThirdPartyNotices.txt',
};

/** The vendor's wheel of a version, hosted by the one ONNX Runtime whose interface is known. */
function qnnRecipe(version: string, qairt: string, sha256: string, bytes: number): ToolchainRecipe {
  return {
    version,
    licence: {
      title: 'Qualcomm licence',
      entry: 'onnxruntime_qnn/Qualcomm_LICENSE.pdf',
      wheel: 'onnxruntime-qnn',
    },
    wheels: [
      ONNXRUNTIME,
      {
        project: 'onnxruntime-qnn',
        version,
        file: `onnxruntime_qnn-${version}-cp311-cp311-manylinux_2_35_x86_64.whl`,
        platform: 'manylinux_2_35_x86_64',
        sha256,
        bytes,
        // The GPU backend needs an Adreno and never loads here. The libraries find onnxruntime_qnn.libs by a relative
        // RPATH, so the wheel's own folder layout is kept.
        wants: (entry) =>
          (/^onnxruntime_qnn\/lib\w+\.so$/.test(entry) && !entry.endsWith('/libQnnGpu.so')) ||
          /^onnxruntime_qnn\.libs\/lib[^/]+$/.test(entry) ||
          /^onnxruntime_qnn\/(Qualcomm_LICENSE\.pdf|LICENSE|ThirdPartyNotices\.txt)$/.test(entry),
      },
    ],
    glibc: [2, 35],
    onnxruntimeLibrary: 'onnxruntime/capi/libonnxruntime.so.1.32.0',
    qnnLibraryFolder: 'onnxruntime_qnn',
    versions: { onnxruntime: ONNXRUNTIME.version, 'onnxruntime-qnn': version, qairt },
  };
}

/** Every version that was tried, the newest first: it is the default. The vendor's own number is read from a binary. */
export const TOOLCHAIN_RECIPES: Readonly<Record<ToolchainName, readonly ToolchainRecipe[]>> = {
  qnn: [
    qnnRecipe('2.7.0', '2.51.0', 'c56c01562b8534fe8980cfea4601408d950c065f8251fb862ce82101c52c9849', 98578793),
    qnnRecipe('2.6.0', '2.50.40', '33d8f910031b22b08792d706121caee5b4094b3262c0b31e1c2dab8124268897', 95339369),
  ],
};
