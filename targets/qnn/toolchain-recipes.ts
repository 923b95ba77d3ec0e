import type { Wheel } from './obtain-wheel.ts';

/** What is loaded of each toolchain: paths in its folder. */
export interface ToolchainLibraries {
  /** Qualcomm's HTP compiler and simulator, and the ONNX Runtime that hosts them. */
  readonly qnn: { readonly onnxruntimeLibrary: string; readonly qnnLibraryFolder: string };
  /** Google's runtime for .litertlm files. */
  readonly 'litert-lm': { readonly library: string };
  /** LiteRT's compiler driver, its vendors' plugins, and OpenVINO's libraries for the one of Intel. */
  readonly litert: {
    readonly applyPlugin: string;
    /** A folder for each vendor. */
    readonly vendorFolder: string;
    readonly runtimeLibrary: string;
    readonly openvinoFolder: string;
  };
}

/** Toolchains that the user installs; none is ever bundled with this package. */
export type ToolchainName = keyof ToolchainLibraries;

/** One version of a toolchain: exact wheels, and what is used of them. */
export interface ToolchainRecipe<Name extends ToolchainName = ToolchainName> {
  readonly version: string;
  /** The vendor's own terms, where the user has to accept some; open source has none to accept. */
  readonly licence?: { readonly title: string; readonly entry: string; readonly wheel: string };
  readonly wheels: readonly Wheel[];
  /** Oldest C library that the wheels' platform tags allow. */
  readonly glibc: readonly [number, number];
  readonly libraries: ToolchainLibraries[Name];
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
function qnnRecipe(version: string, qairt: string, sha256: string, bytes: number): ToolchainRecipe<'qnn'> {
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
    libraries: {
      onnxruntimeLibrary: 'onnxruntime/capi/libonnxruntime.so.1.32.0',
      qnnLibraryFolder: 'onnxruntime_qnn',
    },
    versions: { onnxruntime: ONNXRUNTIME.version, 'onnxruntime-qnn': version, qairt },
  };
}

const LITERT_LM: Wheel = {
  project: 'litert-lm-api',
  version: '0.18.1',
  file: 'litert_lm_api-0.18.1-py3-none-manylinux_2_27_x86_64.whl',
  platform: 'manylinux_2_27_x86_64',
  sha256: 'b2fe9b9a87afe991a7b0d29615b0bfc3d41c7a0ac28e9c54436676482bca2e5b',
  bytes: 47051755,
  // Its C interface is called; the Python around it is not needed.
  wants: (entry) => entry === 'litert_lm/liblitert-lm.so',
};

/**
 * LiteRT's own compiler driver with its vendors' plugins, and OpenVINO, which Intel's plugin is linked with: the plugin asks
 * for exactly this version by its library's name. The vendors' SDK packages on the index hold no libraries: they fetch
 * them from the vendors when they are built.
 */
const LITERT_RECIPE: ToolchainRecipe<'litert'> = {
  version: '2.3.0',
  wheels: [
    {
      project: 'ai-edge-litert',
      version: '2.3.0',
      file: 'ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_x86_64.whl',
      platform: 'manylinux_2_27_x86_64',
      sha256: '1f15078a6725d2357d9de9221664c29afa0545d807559c5f7199ce5e40b96b23',
      bytes: 21778233,
      executables: new Set(['ai_edge_litert/tools/apply_plugin_main']),
      wants: (entry) =>
        entry === 'ai_edge_litert/libLiteRt.so' ||
        entry === 'ai_edge_litert/tools/apply_plugin_main' ||
        /^ai_edge_litert\/vendors\/(qualcomm|intel_openvino|mediatek|samsung)\/\w+\/lib\w+\.so$/.test(entry) ||
        entry.endsWith('dist-info/licenses/LICENSE'),
    },
    {
      project: 'openvino',
      version: '2026.3.1',
      file: 'openvino-2026.3.1-22476-cp311-cp311-manylinux_2_28_x86_64.whl',
      platform: 'manylinux_2_28_x86_64',
      sha256: 'a767aab95940ce78901335f5e89e61087b81ce122a546e3023489303f8488cd3',
      bytes: 57502334,
      // The plugins find these by a relative path, so the wheels' own folders are kept side by side.
      wants: (entry) =>
        /^openvino\/libs\/(libopenvino\.so|libopenvino_(intel_(cpu|npu)_plugin|ir_frontend|tensorflow_lite_frontend)\.|libhwloc|libtbb\.|libtbbmalloc\.|libtbbbind)/.test(
          entry,
        ) || /dist-info\/licenses\//.test(entry),
    },
  ],
  glibc: [2, 28],
  libraries: {
    applyPlugin: 'ai_edge_litert/tools/apply_plugin_main',
    vendorFolder: 'ai_edge_litert/vendors',
    runtimeLibrary: 'ai_edge_litert/libLiteRt.so',
    openvinoFolder: 'openvino/libs',
  },
  versions: { litert: '2.3.0', openvino: '2026.3.1' },
};

/** Every version that was tried, the newest first: it is the default. The vendor's own number is read from a binary. */
export const TOOLCHAIN_RECIPES: { readonly [Name in ToolchainName]: readonly ToolchainRecipe<Name>[] } = {
  qnn: [
    qnnRecipe('2.7.0', '2.51.0', 'c56c01562b8534fe8980cfea4601408d950c065f8251fb862ce82101c52c9849', 98578793),
    qnnRecipe('2.6.0', '2.50.40', '33d8f910031b22b08792d706121caee5b4094b3262c0b31e1c2dab8124268897', 95339369),
  ],
  'litert-lm': [
    {
      version: LITERT_LM.version,
      wheels: [LITERT_LM],
      glibc: [2, 27],
      libraries: { library: 'litert_lm/liblitert-lm.so' },
      versions: { 'litert-lm': LITERT_LM.version },
    },
  ],
  litert: [LITERT_RECIPE],
};
