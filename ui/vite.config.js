import { defineConfig } from "vite";

export default defineConfig({
  build: {
    outDir: "../controller/web/static",
    emptyOutDir: true,
    target: "es2022",
    // what is bundled is listed with its licence; notices inside of it stay where they are
    license: { fileName: "licenses.md" },
    rolldownOptions: { output: { comments: { legal: true } } },
    chunkSizeWarningLimit: 800,
  },
  server: {
    proxy: { "/api": "http://127.0.0.1:8080" },
  },
});
