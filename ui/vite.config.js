import { defineConfig } from "vite";

export default defineConfig({
  build: {
    outDir: "../controller/web/static",
    emptyOutDir: true,
    target: "es2022",
    license: { fileName: "licenses.md" },
    chunkSizeWarningLimit: 800,
  },
  server: {
    proxy: { "/api": "http://127.0.0.1:8080" },
  },
});
